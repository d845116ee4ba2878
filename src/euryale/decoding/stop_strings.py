"""The search for stop strings in a text that grows piece by piece.

Only new text is searched: what stands in the prompt ends nothing. Special tokens are not shown, so a string that holds
one (`<|im_end|>` and a newline) is searched in the text with special tokens written out, and the answer ends before it.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from euryale.data.rows import encode
from euryale.errors import UserError

if TYPE_CHECKING:  # stop= is checked before transformers is imported
    from transformers import PreTrainedTokenizerBase


def check_stop(stop: object) -> tuple[str, ...]:
    """One string, several or none -> a tuple. Raises UserError for an empty one, which would match everywhere, and for
    half a surrogate pair, which never would."""
    strings = (stop,) if isinstance(stop, str) else () if stop is None else stop
    if not isinstance(strings, Sequence) or isinstance(strings, (bytes, bytearray)):
        raise UserError(f"stop must be a string, or a list of strings; got {type(stop).__name__}.")
    for string in strings:
        if not isinstance(string, str) or not string:
            raise UserError(
                f"stop={list(strings)!r}: a stop string must be text of at least one character; got {string!r}. Leave "
                "stop out for none."
            )
        encode(string, "stop")
    return tuple(strings)


def special_ids(tokenizer: "PreTrainedTokenizerBase", strings: Sequence[str]) -> tuple[int, ...]:
    """The ids of those strings that are special tokens, such as `<|eot_id|>`.

    Their text is never shown, so a stop string that is one stops by its id.
    """
    return tuple(token for token, content in special_tokens(tokenizer).items() if content in strings)


def special_tokens(tokenizer: "PreTrainedTokenizerBase") -> dict[int, str]:
    """The special tokens by id."""
    return {token: added.content for token, added in tokenizer.added_tokens_decoder.items() if added.special}


class StopSearch:
    """The search for several strings at once. Positions count characters of the shown text."""

    def __init__(self, strings: Iterable[str], special: Mapping[int, str]) -> None:
        """special: the special tokens, by id."""
        stops = [(StopString(string), any(content in string for content in special.values())) for string in strings]
        self._shown = [stop for stop, holds_special in stops if not holds_special]
        self._marked = [stop for stop, holds_special in stops if holds_special]
        self._num_shown = 0  # characters
        self._num_marked = 0  # characters of the text with special tokens written out
        self._written_out: list[tuple[int, int]] = []  # where special tokens stand in that text, first and last + 1

    @property
    def reads_special(self) -> bool:
        """Whether `feed_special` has to be called."""
        return bool(self._marked)

    def feed(self, piece: str, may_end: bool = True) -> int | None:
        """Goes on with a piece of shown text. Returns where the first match begins; None: there is none yet.

        may_end: False where the answer is too short to end: matches are passed over.
        """
        begins = [self._num_shown + end - len(stop.string) for stop, end in _feed(self._shown, piece, may_end)]
        begins += self._feed_marked(piece, may_end)
        self._num_shown += len(piece)
        return min(begins, default=None)

    def feed_special(self, content: str, may_end: bool = True) -> int | None:
        """The same for a special token, which is not shown."""
        self._written_out.append((self._num_marked, self._num_marked + len(content)))
        return min(self._feed_marked(content, may_end), default=None)

    def num_possible(self) -> int:
        """Length of the longest end of the shown text that begins a stop string."""
        shown = [stop.num_matched for stop in self._shown]
        marked = [self._num_shown - self._place(self._num_marked - stop.num_matched) for stop in self._marked]
        return max(shown + marked, default=0)

    def _feed_marked(self, piece: str, may_end: bool) -> list[int]:
        if not self._marked:
            return []
        found = _feed(self._marked, piece, may_end)
        begins = [self._place(self._num_marked + end - len(stop.string)) for stop, end in found]
        self._num_marked += len(piece)
        return begins

    def _place(self, marked: int) -> int:
        """A position of the text with special tokens -> the characters of shown text before it."""
        return marked - sum(min(last, marked) - first for first, last in self._written_out if first < marked)


class StopString:
    """The search for one string in a growing text: a constant number of operations a character (Knuth, Morris, Pratt).

    `num_matched` is the length of the longest end of the text that begins the string.
    """

    def __init__(self, string: str) -> None:
        self.string = string
        self.num_matched = 0
        self._shorter = [0] * len(string)  # by length - 1: the next shorter beginning that is an end of this one
        for end in range(1, len(string)):
            self._shorter[end] = self._longest(self._shorter[end - 1], string[end])

    def feed(self, piece: str, may_end: bool = True) -> int | None:
        """The number of characters of `piece` up to the end of the first match; None: there is none yet."""
        for place, character in enumerate(piece, start=1):
            self.num_matched = self._longest(self.num_matched, character)
            if self.num_matched == len(self.string):
                if may_end:
                    return place
                self.num_matched = self._shorter[-1]  # passed over: the next match may share characters with it
        return None

    def _longest(self, length: int, character: str) -> int:
        """The longest end of (the first `length` characters, then this one) that begins the string."""
        while length and self.string[length] != character:
            length = self._shorter[length - 1]
        return length + 1 if self.string[length] == character else 0


def _feed(stops: Sequence[StopString], piece: str, may_end: bool) -> list[tuple[StopString, int]]:
    found = [(stop, stop.feed(piece, may_end)) for stop in stops]
    return [(stop, end) for stop, end in found if end is not None]
