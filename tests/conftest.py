"""What several test files share: a tiny random base on disk."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test asks the network

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from euryale.base.base import Base, load_base
from euryale.base.config import BaseConfig

# Tests are small and machines are shared: threads that wait for each other cost more than they bring.
torch.set_num_threads(1)


def character_tokenizer() -> PreTrainedTokenizerFast:
    """One token per printable ASCII character and newline; ids 0 to 2 are special."""
    letters = ["<unk>", "<s>", "</s>", "\n", *map(chr, range(32, 127))]
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, [], unk_token="<unk>"))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", model_max_length=256
    )


def save_tiny_llama(folder: Path, seed: int = 0, vocab_size: int = 99, **changes: object) -> Path:
    """A random two-layer Llama of width 32 with a character tokenizer, as a Hugging Face folder."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, bos_token_id=1, eos_token_id=2, initializer_range=0.2,
        **changes,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random Llama; vocabulary 99, 256 positions."""
    return save_tiny_llama(tmp_path_factory.mktemp("bases") / "tiny-llama")


@pytest.fixture(scope="session")
def tiny_base(tiny_llama_folder: Path) -> Base:
    """The same, loaded in float32 on the CPU; leave it as it is."""
    return load_base(BaseConfig(path=str(tiny_llama_folder), dtype="float32", device="cpu"))


@pytest.fixture(scope="session")
def material() -> Path:
    """Models, texts and prompts that nobody here wrote, beside the checkout; a plain clone does not have them."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "material"
    if not folder.is_dir():
        pytest.skip(f"no real material at {folder}")
    return folder
