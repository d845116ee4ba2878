"""Who decodes next, when prompts of any length arrive at any time and answers end when they will?

Continuous batching: between two steps, prompts that wait take the places of answers that have ended. A prompt is read
alone into its place, so nobody else is moved, padded or read again. Where nobody waits, the last live row is copied
into the place, once: live rows are always the first ones of the arena, and a step costs what its live rows cost.

Every row is decoded as it would be alone: its text depends on its prompt, its seed and its settings.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple, Unpack

from euryale.base.base import Base
from euryale.decoding.accept import LOSSY, AcceptConfig
from euryale.decoding.decoder import Decoder
from euryale.decoding.detokenizer import Detokenizer
from euryale.decoding.drafters.interface import Drafter
from euryale.decoding.noise import check_seeds
from euryale.decoding.request import Ends, Generation, Prompt, Row, row_of
from euryale.decoding.sampling import AnySampling, Sampling
from euryale.errors import UserError


class Handle:
    """One submitted prompt: where to find its text while it grows, and its Generation when it has ended."""

    def __init__(self, base: Base, row: Row, seed: int, sampling: Sampling) -> None:
        self.row = row
        self.seed = seed
        self.sampling = sampling
        self.generation: Generation | None = None  # once it has ended
        self.error: str | None = None  # why it ended with finish_reason "error"
        self._base = base
        self._start = time.perf_counter()

    def new_text(self) -> str:
        """What was written since the last call; a piece is never taken back and never half a character."""
        return self._detokenizer().new_text(is_last=self.generation is not None)

    def end(self) -> None:
        """Closes the text. It comes from the same detokenizer as the pieces, so both agree; it ends before the eos."""
        row = self.row
        assert row.finish_reason is not None
        seconds = time.perf_counter() - self._start
        detokenizer = self._detokenizer()
        detokenizer.close()
        # A stop string may come to light only here, when half a character behind it was held back.
        reason = "stop" if detokenizer.is_stopped else row.finish_reason
        self.generation = Generation(
            detokenizer.text, row.ids, len(row.accepted), row.accepted, reason, seconds, row.is_lossless, row.nodes
        )

    def _detokenizer(self) -> Detokenizer:
        """Made when somebody asks for text; from then on the row feeds it."""
        if self.row.detokenizer is None:
            self.row.detokenizer = Detokenizer(self._base.tokenizer)
            for token in self.row.text_ids:
                self.row.detokenizer.add(token)
        return self.row.detokenizer


class StepSeen(NamedTuple):
    """What `on_step` is told of a step."""

    num_nodes: int  # of each row's tree
    tokens: list[int]  # gained by each live row, before an end inside a path cuts it


class Scheduler:
    """At most `num_rows` answers at once, each drawn by settings of its own; see Engine.scheduler."""

    def __init__(
        self,
        base: Base,
        drafter: Drafter,
        sampling: Sampling,
        num_rows: int,
        row_tokens: int,
        seconds: dict[str, float],
        rule: AcceptConfig,
        max_waiting: int | None = None,
    ) -> None:
        """sampling: of whoever asks for nothing else. row_tokens: the longest prompt and answer together.
        max_waiting: prompts that may wait; None: any number.

        The memory of num_rows x row_tokens is taken here, once.
        """
        self.base = base
        self.sampling = sampling
        self.num_rows = num_rows
        self.row_tokens = row_tokens
        self.max_waiting = max_waiting
        self.on_step: Callable[[StepSeen], None] | None = None
        self._is_lossy_sampled = rule.name in LOSSY and drafter.max_depth > 0
        self._waiting: deque[Handle] = deque()
        self._live: list[Handle] = []  # by row
        # The last step of the longest row still writes all its nodes.
        self._decoder = Decoder(base, drafter, sampling, num_rows, row_tokens + drafter.num_nodes, seconds, rule)

    @property
    def num_live(self) -> int:
        """Answers that are being written."""
        return sum(handle.generation is None for handle in self._live)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def is_idle(self) -> bool:
        """Nothing is left to do."""
        return not self._waiting and self.num_live == 0

    def submit(
        self,
        prompt: Prompt,
        max_new_tokens: int = 128,
        seed: int = 0,
        stop: str | Sequence[str] | None = None,
        stop_ids: Sequence[int] = (),
        ignore_eos: bool = False,
        **other: Unpack[AnySampling],
    ) -> Handle:
        """Queues a prompt; the keywords are those of Engine.generate.

        `other` settings of sampling than the scheduler's hold for this answer alone; those not named stay.

        Raises UserError: what generate refuses, a prompt and answer longer than a row, more prompts than may wait.
        """
        row = row_of(self.base, prompt, max_new_tokens, Ends.of(self.base, stop, stop_ids, ignore_eos))
        check_seeds([seed])
        sampling = replace(self.sampling, **other) if other else self.sampling
        sampling.check_tokens(self.base.vocab_size, max_new_tokens)
        return self.add(row, seed, sampling)

    def add(self, row: Row, seed: int, sampling: Sampling) -> Handle:
        """Queues what was checked before."""
        needed = len(row.prompt) + row.max_ids
        if needed > self.row_tokens:
            raise UserError(
                f"a prompt of {len(row.prompt)} tokens and max_new_tokens={row.max_ids} need {needed}, and the rows of "
                f"this scheduler hold {self.row_tokens}. Shorten one of them, or make it with row_tokens={needed}."
            )
        num_free = self.num_rows - self.num_live
        if self.max_waiting is not None and len(self._waiting) >= num_free + self.max_waiting:
            raise UserError(
                f"all {self.num_rows} rows of this scheduler are taken and max_waiting={self.max_waiting} prompts wait "
                "already. Take steps until an answer has ended, or make it with more rows."
            )
        row.is_lossless = not (self._is_lossy_sampled and sampling.temperature > 0)
        handle = Handle(self.base, row, seed, sampling)
        self._waiting.append(handle)
        return handle

    def step(self) -> list[Handle]:
        """Lets prompts in, takes one step of all live rows, and returns the answers that ended with it.

        One that no token can follow ends with finish_reason "error", and its handle says why; the others go on.
        """
        self._fill()
        if not self._live:
            return []
        ended = []
        gained = self._decoder.step()
        if self.on_step is not None:
            self.on_step(StepSeen(self._decoder.num_nodes, [len(tokens) for tokens in gained]))
        for row, (handle, tokens) in enumerate(zip(self._live, gained, strict=True)):
            if row in self._decoder.broken:
                handle.error, handle.row.finish_reason = self._decoder.broken[row], "error"
            else:
                handle.row.nodes.append(self._decoder.num_nodes)
                handle.row.take(tokens)
            if handle.row.finish_reason is not None:
                handle.end()
                ended.append(handle)
        return ended

    def run(self) -> None:
        """Steps until nothing is left to do."""
        while not self.is_idle:
            self.step()

    def cancel(self, handle: Handle) -> None:
        """Ends an answer where it is; nothing happens when it has ended."""
        if handle.generation is None:
            handle.row.finish_reason = "cancelled"
            handle.end()
            if handle in self._waiting:
                self._waiting.remove(handle)

    def _fill(self) -> None:
        """Gives places to those who wait, the places of ended answers first; closes the places nobody takes."""
        places = [row for row, handle in enumerate(self._live) if handle.generation is not None]
        taken = [*places, *range(len(self._live), self.num_rows)][: len(self._waiting)]
        for run in _runs(taken):
            # Longest first: whoever has been read stays out of the next chunk.
            new = sorted((self._waiting.popleft() for _ in run), key=lambda handle: -len(handle.row.prompt))
            prompts = [handle.row.prompt for handle in new]
            ends = [handle.row.ends.ids for handle in new]
            seeds, samplings = [handle.seed for handle in new], [handle.sampling for handle in new]
            self._decoder.admit(run[0], prompts, seeds, ends, samplings)
            self._live[run[0] : run[-1] + 1] = new
        for row in reversed(places[len(taken) :]):  # the highest first: whoever moves down is alive
            self._decoder.retire(row)
            last = self._live.pop()
            if row < len(self._live):
                self._live[row] = last


def _runs(rows: Sequence[int]) -> list[list[int]]:
    """Ascending rows, cut where they are not neighbours: [1, 2, 5] -> [[1, 2], [5]]."""
    runs: list[list[int]] = []
    for row in rows:
        if runs and runs[-1][-1] == row - 1:
            runs[-1].append(row)
        else:
            runs.append([row])
    return runs
