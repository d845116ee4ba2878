"""Rows packed into batches of one fixed shape, with an exact cursor.

Documents are laid one after the other into blocks of `block_size` tokens. A block's `documents` number its pieces, so
that neither attention nor a head's label crosses from one to the next. A document that does not fit goes on in the
next block as a piece of its own, with positions from 0: no token is lost.

B blocks in a batch, T tokens in a block.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from euryale.data.bad_rows import BadRows
from euryale.data.config import DataConfig
from euryale.data.rows import Source
from euryale.data.sources import build_source
from euryale.data.tokens import Sample, check_ids, tokenize_row
from euryale.errors import UserError

if TYPE_CHECKING:  # only named in signatures
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

MIN_TOKENS = 3  # the first head at position t is scored on ids[t + 2]
PADDING = -1  # in documents_BT; there is no padding token


class Batch(NamedTuple):
    """What a training step reads. Where documents_BT is -1 there is no token, and ids and positions mean nothing."""

    ids_BT: Tensor  # int64
    is_target_BT: Tensor  # bool: this token may be a label
    positions_BT: Tensor  # int64, from 0 in each piece
    documents_BT: Tensor  # int64: number of the piece in its block, -1 for padding


class Piece(NamedTuple):
    """A part of one document inside one block."""

    ids: list[int]
    is_target: list[bool]


def build_batches(
    config: DataConfig, split: str, tokenizer: PreTrainedTokenizerBase, vocab_size: int | None = None
) -> BatchStream:
    """The batches of a split: `train` without end, `held_out` one pass. Starts at the beginning.

    vocab_size: ids that the base knows; a row with others is a bad row.
    """
    source, repeat = build_source(config, split), split == "train"
    return BatchStream(source, tokenizer, config.block_size, config.batch_size, config.on_error, repeat, vocab_size)


class BatchStream:
    """An iterator of batches with an exact cursor.

    With `repeat` it goes on for ever, pass after pass over the source, and all batches are full. Without, it ends with
    the pass; the last block is padded and the last batch may have fewer blocks. A pass that gives nothing to learn
    from raises UserError, so that neither loops without end.
    """

    def __init__(
        self,
        source: Source,
        tokenizer: PreTrainedTokenizerBase,
        block_size: int,
        batch_size: int,
        on_error: str = "stop",
        repeat: bool = True,
        vocab_size: int | None = None,
    ) -> None:
        self._source = source
        self._vocab_size = vocab_size
        self._tokenizer = tokenizer
        self._block_size = block_size
        self._batch_size = batch_size
        self._refused = BadRows(on_error)  # conversations that the chat template does not take
        self._repeat = repeat
        self._rows = iter(source)
        self._has_ended = False
        self._sample: Sample | None = None  # the document that is being laid out
        self._num_taken = 0  # of its tokens, or of the next document's right after resuming
        self.origins: list[str] = []  # where the rows of the last batch came from
        self._before_sample: dict[str, Any] = {}  # the cursor in front of its row
        self._counts = {"epoch": 0, "rows": 0, "samples": 0, "too_short": 0}  # samples: of this pass

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        blocks: list[list[Piece]] = []
        self.origins = []
        while len(blocks) < self._batch_size and (block := self._next_block()):
            blocks.append(block)
        if not blocks:
            raise StopIteration
        return _to_batch(blocks, self._block_size)

    @property
    def epoch(self) -> int:
        """Passes over the source that are complete."""
        return self._counts["epoch"]

    @property
    def num_rows(self) -> int:
        """Rows read, over all passes, skipped ones not counted."""
        return self._counts["rows"]

    @property
    def num_skipped(self) -> int:
        """Rows that could not be used: bad ones (on_error: skip), and those too short to learn anything from."""
        return self._source.num_skipped + self._counts["too_short"] + self._refused.count

    def state_dict(self) -> dict[str, Any]:
        """The cursor after the last batch, in JSON types. A document that is only half laid out is not stored but
        read again: the cursor in front of it and the number of its tokens that are done."""
        is_half_done = self._sample is not None
        counts = dict(self._counts)
        if is_half_done:  # it will be counted when it is read again
            counts |= {"rows": counts["rows"] - 1, "samples": counts["samples"] - 1}
        return {
            "source": self._before_sample if is_half_done else self._source.state_dict(),
            "num_taken": self._num_taken,
            "num_refused": self._refused.count,
            "counts": counts,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._source.load_state_dict(state["source"])
        self._rows = iter(self._source)
        self._has_ended = False
        self._sample = None
        self._num_taken = state["num_taken"]
        self._refused.restart(state["num_refused"])
        self._counts = dict(state["counts"])

    def _next_block(self) -> list[Piece]:
        """The pieces of one block; fewer tokens than a block, or none, only at the end of the only pass."""
        pieces, room = [], self._block_size
        while room > 0:
            if self._sample is None:
                self._sample = self._next_sample()
                if self._sample is None:
                    break
            taken = slice(self._num_taken, self._num_taken + room)
            piece = Piece(self._sample.ids[taken], self._sample.is_target[taken])
            pieces.append(piece)
            self.origins.append(self._sample.origin)
            room -= len(piece.ids)
            self._num_taken += len(piece.ids)
            if self._num_taken == len(self._sample.ids):
                self._sample, self._num_taken = None, 0
        return pieces

    def _next_sample(self) -> Sample | None:
        """The next document with something to learn; None at the end of the only pass."""
        while not self._has_ended:
            before = self._source.state_dict()
            row = next(self._rows, None)
            if row is None:
                self._end_pass()
                continue
            self._counts["rows"] += 1
            try:
                sample = tokenize_row(row, self._tokenizer)
                if self._vocab_size is not None:
                    check_ids(sample, self._vocab_size)
            except UserError as problem:
                self._refused.meet(problem)
                continue
            if len(sample.ids) < MIN_TOKENS or not any(sample.is_target):
                self._counts["too_short"] += 1
                continue
            self._before_sample = before
            self._counts["samples"] += 1
            return sample
        return None

    def _end_pass(self) -> None:
        if self._counts["samples"] == 0:
            raise UserError(
                f"the data gave nothing to train on: {self._counts['rows']} rows read, {self.num_skipped} of them "
                f"without text to learn from (fewer than {MIN_TOKENS} tokens, no answer, or skipped as bad). Give more "
                "data; of very few rows the held-out split can be empty, see data.held_out_one_in"
            )
        self._counts["samples"] = 0
        self._counts["epoch"] += 1
        if self._counts["epoch"] == 1 and self._counts["too_short"]:
            logger.info(
                "%d of %d rows teach nothing: too short, or without an answer",
                self._counts["too_short"],
                self._counts["rows"],
            )
        self._refused.report()
        self._has_ended = not self._repeat
        self._rows = iter(self._source)


def _to_batch(blocks: list[list[Piece]], block_size: int) -> Batch:
    ids_BT = torch.zeros(len(blocks), block_size, dtype=torch.int64)
    is_target_BT = torch.zeros(len(blocks), block_size, dtype=torch.bool)
    positions_BT = torch.zeros(len(blocks), block_size, dtype=torch.int64)
    documents_BT = torch.full((len(blocks), block_size), PADDING, dtype=torch.int64)
    for row, pieces in enumerate(blocks):
        start = 0
        for number, piece in enumerate(pieces):
            place = slice(start, start + len(piece.ids))
            ids_BT[row, place] = torch.tensor(piece.ids)
            is_target_BT[row, place] = torch.tensor(piece.is_target)
            positions_BT[row, place] = torch.arange(len(piece.ids))
            documents_BT[row, place] = number
            start = place.stop
    return Batch(ids_BT, is_target_BT, positions_BT, documents_BT)
