"""The tokenizer of a base, as its own tokenizer.json has it.

transformers 5 builds the tokenizers of some families anew from the vocabulary alone, with the family's usual rules for
where text is split; a model of that family that was trained with other rules then reads other tokens, without a word
(transformers#45812, #45920, #48219). So both are compared on texts that such rules split differently, and the file,
which is what the model was trained with, has the last word.
"""

import logging
from pathlib import Path
from typing import Any

import huggingface_hub
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

FILE = "tokenizer.json"
_PROBES = (  # digits, apostrophes, lines, runs of spaces, other scripts, composed letters, punctuation, code
    "2023", "650841823", "It's we'LL", "a\n\nb\r\n\tc", "  two  spaces ", "\u4f60\u597d\u3002\u3053", "e\u0301\u00e9",
    "x+=y[3];//--", "fooBar_baz9", "\u0627\u0644 \U0001f600!?", " lead", "UPPER lower",
)  # fmt: skip
log = logging.getLogger(__name__)


def load_tokenizer(path: str, source: dict[str, Any]) -> PreTrainedTokenizerBase:
    """Of a folder or hub id; `source` is how transformers is to look for it, whose errors pass through."""
    tokenizer = AutoTokenizer.from_pretrained(path, **source)
    # The class for any tokenizer.json takes the file as it is; one written in Python has none.
    is_rebuilt = tokenizer.is_fast and type(tokenizer) is not PreTrainedTokenizerFast
    if not isinstance(tokenizer.model_max_length, int | float):
        raise ValueError(f"model_max_length must be a number; got {tokenizer.model_max_length!r}")
    file = _find_file(path, source["revision"]) if is_rebuilt else None
    if file is not None:
        _split_as_stored(tokenizer, Tokenizer.from_file(str(file)), path)
    return tokenizer


def _find_file(path: str, revision: str | None) -> Path | None:
    if Path(path).is_dir():
        file = Path(path) / FILE
        return file if file.is_file() else None
    found = huggingface_hub.try_to_load_from_cache(path, FILE, revision=revision)  # it has just been read
    return Path(found) if isinstance(found, str) else None


def _split_as_stored(tokenizer: PreTrainedTokenizerBase, stored: Tokenizer, path: str) -> None:
    """Gives the tokenizer the rules of the file where they split any probe otherwise; what begins and ends a text, and
    which tokens are special, stays transformers' business."""
    used = tokenizer.backend_tokenizer

    def differ() -> bool:
        of_probe = (tool.encode_batch(_PROBES, add_special_tokens=False) for tool in (used, stored))
        return any(a.ids != b.ids for a, b in zip(*of_probe, strict=True))

    if not differ():
        return
    used.model, used.decoder = stored.model, stored.decoder
    used.normalizer, used.pre_tokenizer = stored.normalizer, stored.pre_tokenizer
    left = " (and still does for some texts)" if differ() else ""
    log.warning(
        "base %s: its %s splits text otherwise than transformers' %s does; the file is followed%s",
        path, FILE, type(tokenizer).__name__, left,
    )  # fmt: skip
