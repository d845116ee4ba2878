"""A new base: a tokenizer and a random Llama, made for given text.

Used by `recipe=pretrain_tiny` alone.
"""

import logging
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from euryale.data.rows import Row
from euryale.errors import UserError
from euryale.system.files import write_atomically
from euryale.training.config import SPECIAL, ScratchConfig

_MAX_ROWS = 20_000  # enough text for a vocabulary of a few thousand
log = logging.getLogger(__name__)


def make_base(config: ScratchConfig, rows: Iterable[Row], folder: Path, seed: int) -> Path:
    """Writes a byte-level BPE tokenizer trained on the rows and an untrained Llama into `folder`; returns it.

    A folder that is there already is kept: a resumed run starts from the same weights. Raises UserError when the
    rows hold too little text for the vocabulary, or for a shape that cannot be built.
    """
    config.check()
    if (folder / "config.json").is_file():
        return folder
    tokenizer = _train_tokenizer(config, (row.text for row in islice(rows, _MAX_ROWS) if row.text))
    if tokenizer.get_vocab_size() < config.vocab_size:
        raise UserError(
            f"scratch.vocab_size must be at most {tokenizer.get_vocab_size()}, the tokens that the text gives; got "
            f"{config.vocab_size}. Give more text or a smaller vocabulary."
        )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(shape_of(config))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=SPECIAL[0],
        eos_token=SPECIAL[1],
        pad_token=SPECIAL[2],
        model_max_length=config.max_length,
    )
    with write_atomically(folder) as staged:
        model.save_pretrained(staged)
        fast.save_pretrained(staged)
    log.info("new base in %s: %.1f M parameters", folder, model.num_parameters() / 1e6)
    return folder


def shape_of(config: ScratchConfig) -> LlamaConfig:
    """What the base is built from; nothing is built here."""
    return LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        max_position_embeddings=config.max_length,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )


def _train_tokenizer(config: ScratchConfig, texts: Iterable[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return tokenizer
