"""Token ids to text while they arrive, in the context of the prompt.

The text of an answer is what it adds to the text of its prompt: the text of all ids, less the text of the prompt's. So
a space between the two is the answer's, and a character that the prompt's last bytes begin is the answer's once it is
whole. (`decode` of the answer alone leaves out the first space where the tokenizer marks beginnings of words.)

A token may hold half a character, and some tokenizers write a token differently after another one. So a piece is the
difference between the decodings of a short window with and without the new ids, held back while it ends in an
unfinished character, or in what may become a stop string.
"""

from collections.abc import Sequence
from functools import lru_cache
from os.path import commonprefix

from transformers import PreTrainedTokenizerBase

from euryale.decoding.stop_strings import StopSearch, special_tokens

_UNFINISHED = "\ufffd"
_CONTEXT = 16  # ids of the prompt that are decoded with the answer's first
_MOST_PENDING = 12  # ids without a whole character: from then on they are invalid bytes
_CUTS = range(4, 8)  # ids that stay when they are cut: a character has four bytes, so that one of four cuts splits none


class _Readable:
    """What is known of a tokenizer's ids; made once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.special = special_tokens(tokenizer)
        skipped = {*self.special, *tokenizer.all_special_ids}
        # A padded matrix has more rows than there are tokens: a tokenizer written in Python cannot decode these.
        self.ids = frozenset(tokenizer.get_vocab().values()) - skipped


@lru_cache(maxsize=4)
def _readable(tokenizer: PreTrainedTokenizerBase, _num_tokens: int) -> _Readable:
    return _Readable(tokenizer)


class Detokenizer:
    """Text of one growing answer. `add` ids, take `new_text`, and `close` at the end."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        stop: tuple[str, ...] = (),
        prompt: Sequence[int] = (),
        min_new_tokens: int = 0,
    ) -> None:
        """min_new_tokens: a stop string that is whole within so many ids is passed over."""
        self.tokenizer = tokenizer
        self.text = ""  # all text so far; only a stop string shortens it
        self.is_stopped = False
        self._readable = _readable(tokenizer, len(tokenizer))
        self._search = StopSearch(stop, self._readable.special)
        self._min_new_tokens = min_new_tokens
        self._num_ids = 0
        self._context = self._tail(prompt)  # ids that are decoded again for those after them
        self._before = self._texts_before(self._context)
        self._pending: list[int] = []  # ids whose text is not in self.text
        self._shown = 0  # characters already handed out

    def add(self, token: int) -> bool:
        """Takes one id. Returns True when the text now holds a stop string (and ends before it)."""
        self._num_ids += 1
        if token in self._readable.ids:
            self._pending.append(token)
            after = self._decode([*self._context, *self._pending])
            piece = _added(self._before, after)
            if piece and not after.endswith(_UNFINISHED):
                self._append(piece)
                self._go_on_from([*self._begun_character(), *self._pending])
            elif len(self._pending) > _MOST_PENDING:
                self._cut(piece)
        elif self._search.reads_special and token in self._readable.special:
            self._end_at(self._search.feed_special(self._readable.special[token], self._may_end))
        return self.is_stopped

    def close(self) -> None:
        """Takes what was held back: the answer is over."""
        if not self.is_stopped and self._pending:
            self._append(_added(self._before, self._decode([*self._context, *self._pending])))
            self._pending = []

    def new_text(self, is_last: bool = False) -> str:
        """The characters not handed out yet, less (unless it is the last call) a possible start of a stop string."""
        end = len(self.text) if is_last or self.is_stopped else len(self.text) - self._search.num_possible()
        piece = self.text[self._shown : end]
        self._shown = max(self._shown, end)
        return piece

    @property
    def _may_end(self) -> bool:
        return self._num_ids > self._min_new_tokens

    def _append(self, piece: str) -> None:
        end = self._search.feed(piece, self._may_end)
        self.text += piece
        self._end_at(end)

    def _end_at(self, end: int | None) -> None:
        if end is not None and not self.is_stopped:
            self.text = self.text[:end]
            self.is_stopped = True

    def _go_on_from(self, context: list[int], pending: Sequence[int] = ()) -> None:
        self._context, self._pending = context, list(pending)
        self._before = self._texts_before(context)

    def _begun_character(self) -> list[int]:
        """The last ids of the context, where a character begins in them that the pending ids have made whole."""
        num = len(self._before) - 1
        return self._context[-num:] if num and not self._before[-1].endswith(_UNFINISHED) else []

    def _cut(self, piece: str) -> None:
        """Takes the text of all pending ids but the last few, where it is sure; else a run of bytes that are not text
        would be decoded again with each of them."""
        for num_left in _CUTS:
            first, last = self._pending[:-num_left], self._pending[-num_left:]
            sure = _added(self._before, self._decode([*self._context, *first]))
            # Where one byte of a run is invalid, tokenizers with byte tokens show none of the run as text: the context
            # has to begin with such a byte.
            context = self._context if self._before[0].endswith(_UNFINISHED) else first
            if sure + _added(self._texts_before(context), self._decode([*context, *last])) == piece:
                self._append(sure)
                self._go_on_from(context, last)
                return

    def _tail(self, prompt: Sequence[int]) -> list[int]:
        """The last ids of the prompt, as many as have text that begins with a whole character."""
        ids = [token for token in prompt if token in self._readable.ids]
        for num in (*range(_CONTEXT, _CONTEXT + 4), 4 * _CONTEXT):
            text = self._texts_before(ids[-num:])[-1]
            if text and not text.startswith(_UNFINISHED):
                return ids[-num:]
        return ids

    def _texts_before(self, ids: list[int]) -> list[str]:
        """The text of these ids; where it ends in an unfinished character, also without the last ids, up to three."""
        texts = [self._decode(ids)]
        while texts[-1].endswith(_UNFINISHED) and len(texts) <= min(3, len(ids)):
            texts.append(self._decode(ids[: -len(texts)]))
        return texts

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _added(before: list[str], after: str) -> str:
    """What `after` says beyond the text before it: the longest one it begins with, if the last character was unfinished
    (tokenizers with byte tokens then show the whole run of bytes as invalid)."""
    if not before[0].endswith(_UNFINISHED):
        return after[len(before[0]) :]
    said = next((text for text in before if after.startswith(text)), commonprefix([before[0], after]))
    return after[len(said) :]
