"""Tokenizer, limits and name of a base, without its weights.

Where a server of the base writes the training text, only its tokenizer, its limits and its name are asked for: they
come from small files, so that only the server needs memory for the model.
"""

import logging
from typing import NamedTuple

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, GenerationConfig, PreTrainedTokenizerBase

from euryale.base.config import BaseConfig
from euryale.base.families import check_family, context_length
from euryale.base.locate import find_source, fingerprint, known_as, load_message, read_config
from euryale.base.precision import is_stored_in_4_bits
from euryale.base.token_ids import eos_ids
from euryale.base.tokenizer import load_tokenizer
from euryale.errors import UserError

log = logging.getLogger(__name__)


class UnloadedBase(NamedTuple):
    """The facts of a Base, under the same names."""

    tokenizer: PreTrainedTokenizerBase
    path: str
    fingerprint: str
    quantization: str
    revision: str | None
    architecture: str
    vocab_size: int
    hidden_size: int
    max_length: int
    eos_ids: tuple[int, ...]

    def identity(self) -> dict[str, str | int | None]:
        """That of the base when it is loaded."""
        names = ("path", "revision", "architecture", "vocab_size", "hidden_size", "fingerprint", "quantization")
        return {name: getattr(self, name) for name in names}


def describe_base(config: BaseConfig) -> UnloadedBase:
    """Raises UserError: no path, no such folder or hub id, one without tokenizer, a family that
    is not supported."""
    path, source = find_source(config)
    of_base = read_config(config)
    asked = str(config.path)
    check_family(of_base, asked)
    is_stored = is_stored_in_4_bits(of_base, asked, config.quantization)
    try:
        tokenizer = load_tokenizer(path, source)
    except Exception as error:  # transformers reports a user's mistakes with any of these
        raise UserError(load_message(asked, error)) from error
    try:
        generation = GenerationConfig.from_pretrained(
            path, revision=source["revision"], local_files_only=source["local_files_only"]
        )
    except OSError:  # the file is optional
        generation = None
    text = of_base.get_text_config()
    log.info("base %s: tokenizer and sizes alone; its weights are not loaded", asked)
    return UnloadedBase(
        tokenizer,
        known_as(asked, path),
        fingerprint(path, of_base),
        "nf4" if is_stored else "none" if config.quantization == "auto" else config.quantization,
        getattr(of_base, "_commit_hash", None),
        MODEL_FOR_CAUSAL_LM_MAPPING[type(of_base)].__name__,
        text.vocab_size,
        getattr(text, "word_embed_proj_dim", text.hidden_size),  # OPT narrows its states before the output matrix
        context_length(of_base),
        eos_ids(text.vocab_size, generation, of_base),
    )
