"""The tokenizer of a base, as its own tokenizer.json has it.

transformers 5 builds the tokenizers of some families anew from the vocabulary alone, with the family's usual rules for
where text is split; a model of that family that was trained with other rules then reads other tokens, without a word
(transformers#45812, #45920, #48219). So both are compared on texts that such rules split differently, and the file,
which is what the model was trained with, has the last word. Only whether a text begins with a space is not the file's
to say where tokenizer_config.json says it (`add_prefix_space`): the classes follow that, as in transformers 4.
"""

import logging
from pathlib import Path
from typing import Any

import huggingface_hub
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from euryale.system.files import read_json

FILE, SETTINGS = "tokenizer.json", "tokenizer_config.json"
_LEAD = "x "  # a first word, so that a probe does not begin its text
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
        lead = _LEAD if _says_how_texts_begin(file.with_name(SETTINGS)) else ""
        _split_as_stored(tokenizer, Tokenizer.from_file(str(file)), lead, path)
    return tokenizer


def _find_file(path: str, revision: str | None) -> Path | None:
    if Path(path).is_dir():
        file = Path(path) / FILE
        return file if file.is_file() else None
    found = huggingface_hub.try_to_load_from_cache(path, FILE, revision=revision)  # it has just been read
    return Path(found) if isinstance(found, str) else None


def _says_how_texts_begin(settings: Path) -> bool:
    return settings.is_file() and isinstance(read_json(settings).get("add_prefix_space"), bool)


def _ids(tokenizer: Tokenizer, text: str, lead: str) -> list[int]:
    """The tokens of a text that stands after `lead`, those left out that reach into the lead."""
    found = tokenizer.encode(lead + text, add_special_tokens=False)
    least = max(len(lead) - 1, 0)  # a word's token may hold the space before it
    return [token for token, (start, _) in zip(found.ids, found.offsets, strict=True) if start >= least]


def _split_as_stored(tokenizer: PreTrainedTokenizerBase, stored: Tokenizer, lead: str, path: str) -> None:
    """Gives the tokenizer the rules of the file where they split any probe after `lead` otherwise; what begins and ends
    a text, and which tokens are special, stays transformers' business."""
    used = tokenizer.backend_tokenizer

    def differ() -> bool:
        return any(_ids(used, probe, lead) != _ids(stored, probe, lead) for probe in _PROBES)

    if not differ():
        return
    used.model, used.decoder = stored.model, stored.decoder
    used.normalizer, used.pre_tokenizer = stored.normalizer, stored.pre_tokenizer
    left = " (and still does for some texts)" if differ() else ""
    log.warning(
        "base %s: its %s splits text otherwise than transformers' %s does; the file is followed%s",
        path, FILE, type(tokenizer).__name__, left,
    )  # fmt: skip
