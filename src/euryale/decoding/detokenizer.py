"""How do token ids become text while they are still arriving?

A token may hold half a character, and some tokenizers write a token differently behind another one. So a piece is
the difference between the decodings of a short window with and without the new ids, held back while it ends in an
unfinished character, or in what may become a stop string.
"""

from collections.abc import Sequence

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


class Detokenizer:
    """Text of one growing answer. `add` ids, take `new_text`, and `close` at the end."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: tuple[str, ...] = ()) -> None:
        self.tokenizer = tokenizer
        self.stop = stop
        self.text = ""  # all text so far; never shortened but by a stop string
        self.is_stopped = False
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
        start = len(self.text)
        self.text += piece
        found = [self.text.find(s, max(0, start - len(s) + 1)) for s in self.stop]
        ends = [at for at in found if at >= 0]
        if ends:
            self.text = self.text[: min(ends)]
            self.is_stopped = True

    def _possible_stop(self) -> int:
        """Length of the longest end of the text that begins a stop string."""
        return max(
            (n for s in self.stop for n in range(1, min(len(s), len(self.text) + 1)) if self.text.endswith(s[:n])),
            default=0,
        )

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
