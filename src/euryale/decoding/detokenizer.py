"""Token ids to text while they arrive, and the search for stop strings in it.

A token may hold half a character, and some tokenizers write a token differently after another one. So a piece is the
difference between the decodings of a short window with and without the new ids, held back while it ends in an
unfinished character, or in what may become a stop string.
"""

from collections.abc import Sequence
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

from euryale.errors import UserError

_UNFINISHED = "\ufffd"


def check_stop(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """One string, several or none -> a tuple. Raises UserError for an empty one, which would match everywhere."""
    strings = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if any(not isinstance(s, str) or not s for s in strings):
        raise UserError(
            f"stop={list(strings)!r} holds an empty or non-text entry. Give strings of one character or more."
        )
    return strings


def special_ids(tokenizer: PreTrainedTokenizerBase, strings: Sequence[str]) -> tuple[int, ...]:
    """The ids of those strings that are special tokens, such as `<|eot_id|>`.

    Their text is never shown, so as strings they would never match: a stop string that is one has to stop by its id.
    """
    return tuple(
        token for token, added in tokenizer.added_tokens_decoder.items() if added.special and added.content in strings
    )


class _StopString:
    """The search for one string in a growing text: a constant number of operations a character (Knuth, Morris, Pratt).

    `num_matched` is the length of the longest end of the text that begins the string.
    """

    def __init__(self, string: str) -> None:
        self.string = string
        self.num_matched = 0
        self._shorter = [0] * len(string)  # by length - 1: the next shorter beginning that is an end of this one
        for end in range(1, len(string)):
            self._shorter[end] = self._longest(self._shorter[end - 1], string[end])

    def feed(self, piece: str) -> int | None:
        """The number of characters of `piece` up to the end of the first match; None: there is none yet."""
        for place, character in enumerate(piece, start=1):
            self.num_matched = self._longest(self.num_matched, character)
            if self.num_matched == len(self.string):
                return place
        return None

    def _longest(self, length: int, character: str) -> int:
        """The longest end of (the first `length` characters, then this one) that begins the string."""
        while length and self.string[length] != character:
            length = self._shorter[length - 1]
        return length + 1 if self.string[length] == character else 0


@lru_cache(maxsize=4)
def _named_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int] | None:
    """The ids that have a token, where the tokenizer cannot decode others: a padded matrix has more rows than tokens.

    None: others decode to nothing, as tokenizers in Rust do.
    """
    return None if tokenizer.is_fast else frozenset(tokenizer.get_vocab().values())


class Detokenizer:
    """Text of one growing answer. `add` ids, take `new_text`, and `close` at the end."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: tuple[str, ...] = ()) -> None:
        self.tokenizer = tokenizer
        self._stops = [_StopString(string) for string in stop]
        self.text = ""  # all text so far; only a stop string shortens it
        self.is_stopped = False
        self._named = _named_ids(tokenizer)
        self._ids: list[int] = []
        self._window = 0  # first id that is decoded again for context
        self._read = 0  # ids whose text is in self.text
        self._shown = 0  # characters already handed out

    def add(self, token: int) -> bool:
        """Takes one id. Returns True when the text now holds a stop string (and ends before it)."""
        self._ids.append(token)
        before = self._decode(self._ids[self._window : self._read])
        after = self._decode(self._ids[self._window :])
        if len(after) > len(before) and not after.endswith(_UNFINISHED):
            self._append(after[len(before) :])
            self._window, self._read = self._read, len(self._ids)
        return self.is_stopped

    def close(self) -> None:
        """Takes what was held back: the answer is over."""
        if not self.is_stopped and self._read < len(self._ids):
            before = self._decode(self._ids[self._window : self._read])
            self._append(self._decode(self._ids[self._window :])[len(before) :])
            self._read = len(self._ids)

    def new_text(self, is_last: bool = False) -> str:
        """The characters not handed out yet, less (unless it is the last call) a possible start of a stop string."""
        end = len(self.text) if is_last or self.is_stopped else len(self.text) - self._possible_stop()
        piece = self.text[self._shown : end]
        self._shown = max(self._shown, end)
        return piece

    def _append(self, piece: str) -> None:
        found = [(stop, stop.feed(piece)) for stop in self._stops]
        begins = [len(self.text) + end - len(stop.string) for stop, end in found if end is not None]
        self.text += piece
        if begins:
            self.text = self.text[: min(begins)]
            self.is_stopped = True

    def _possible_stop(self) -> int:
        """Length of the longest end of the text that begins a stop string."""
        return max((stop.num_matched for stop in self._stops), default=0)

    def _decode(self, ids: list[int]) -> str:
        if self._named is not None:
            ids = [token for token in ids if token in self._named]
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
