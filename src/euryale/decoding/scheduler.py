"""Continuous batching: which requests run in the next step.

Between two steps, requests that wait take the places of answers that have ended. A prompt is read alone into its place,
so no other row is moved, padded or read again. Where no request waits, the last live row is copied into the place once
(swap-remove): live rows are always the first ones of the cache, and a step costs what its live rows cost.

Every row is decoded as it would be alone: its text depends on its prompt, its seed and its settings.
"""

from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import NamedTuple

from euryale.base.base import Base
from euryale.decoding.accept import LOSSY
from euryale.decoding.config import AcceptConfig
from euryale.decoding.decoder import Decoder
from euryale.decoding.drafters.interface import Drafter
from euryale.decoding.prefill import CHUNK
from euryale.decoding.prefix_cache import PrefixCache
from euryale.decoding.prompt import Prompt
from euryale.decoding.record import Record
from euryale.decoding.request import Request, StopConditions, has_drafts
from euryale.decoding.sampling import Sampling
from euryale.errors import UserError


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
        chunked_prefill: bool = False,
    ) -> None:
        """sampling: of requests that name no settings. row_tokens: the longest prompt and answer together.
        max_waiting: requests that may wait; None: any number. chunked_prefill: a step reads at most one chunk of one
        long prompt, so that the others go on; else every prompt is read whole before the next step.

        The memory of num_rows x row_tokens is taken here, once.
        """
        self.base = base
        self.sampling = sampling
        self.num_rows = num_rows
        self.row_tokens = row_tokens
        self.max_waiting = max_waiting
        self.chunked_prefill = chunked_prefill
        self.on_step: Callable[[StepSeen], None] | None = None
        self._is_exact, self._rule = base.is_exact, rule
        self._is_lossy_sampled = rule.name in LOSSY and drafter.max_depth > 0
        self._waiting: deque[Request] = deque()
        self._live: list[Request] = []  # by row
        self._reading: Request | None = None  # it waits while its long prompt is read
        # The last step of the longest row still writes all its nodes.
        self._decoder = Decoder(base, drafter, num_rows, row_tokens + drafter.num_nodes, seconds, rule)

    @property
    def num_live(self) -> int:
        """Answers that are being written."""
        return sum(request.generation is None for request in self._live)

    @property
    def is_idle(self) -> bool:
        """Nothing is left to do."""
        return not self._waiting and self.num_live == 0

    def submit(
        self,
        prompt: Prompt,
        max_new_tokens: int = 128,
        seed: int | None = 0,
        stop: str | Sequence[str] | None = None,
        stop_ids: int | Sequence[int] | None = (),
        ignore_eos: bool = False,
        drafter: str | None = None,
        record: Record | None = None,
        **knobs: object,
    ) -> Request:
        """Queues a prompt; the keywords are those of Engine.generate.

        drafter: "none" decodes this answer one token a step; None drafts as the scheduler does. record: what is
        recorded of its steps. `knobs` of Sampling hold for this answer alone; those not named are the scheduler's.

        Raises UserError: what generate refuses, a prompt and answer longer than a row, more requests than may wait.
        """
        sampling = Sampling.of(**(self.sampling.keywords() | knobs)) if knobs else self.sampling
        conditions = StopConditions.of(self.base, stop, stop_ids, ignore_eos)
        request = Request.of(self.base, prompt, max_new_tokens, conditions, sampling, seed)
        request.has_drafts = has_drafts(drafter)
        request.record = record
        return self.add(request)

    def add(self, request: Request) -> Request:
        """Queues a request that was checked before (Request.of), and returns it."""
        if request.num_tokens > self.row_tokens:
            raise UserError(
                f"a prompt of {len(request.prompt)} tokens and max_new_tokens={request.max_ids} need "
                f"{request.num_tokens}, and the rows of this scheduler hold {self.row_tokens}. Shorten one of them, or "
                f"make it with row_tokens={request.num_tokens}."
            )
        num_free = self.num_rows - self.num_live
        if self.max_waiting is not None and len(self._waiting) >= num_free + self.max_waiting:
            raise UserError(
                f"all {self.num_rows} rows of this scheduler are taken and max_waiting={self.max_waiting} prompts wait "
                "already. Take steps until an answer has ended, or make it with more rows."
            )
        is_sampled = request.sampling.temperature > 0
        request.is_lossless = not (self._is_lossy_sampled and is_sampled and request.has_drafts)
        request.is_exact = self._is_exact and (self._rule.name == "exact" or not is_sampled)
        self._waiting.append(request)
        return request

    def step(self) -> list[Request]:
        """Admits requests, takes one step of all live rows, and returns the requests that ended with it.

        A request that no token can follow ends with finish_reason "error", and its `error` says why; the others go on.
        """
        self._fill()
        if not self._live:
            return []
        ended = []
        gained = self._decoder.step()
        if self.on_step is not None and any(gained):
            self.on_step(StepSeen(self._decoder.num_nodes, [len(tokens) for tokens in gained if tokens]))
        for row, (request, tokens) in enumerate(zip(self._live, gained, strict=True)):
            if row in self._decoder.broken:
                request.error, request.finish_reason = self._decoder.broken[row], "error"
            elif tokens:  # a step on the device tells what it gained one step later
                request.take(tokens, self._decoder.num_nodes if request.has_drafts else 1)
            if request.finish_reason is not None:
                request.end()
                self._decoder.remember(row)
                ended.append(request)
        return ended

    def remember_prefixes(self, num_tokens: int) -> bool:
        """Keeps keys and values of so many tokens of ended texts for long prompts that begin as one of them did.

        False: not here. The base's forward must be exact, or a text would depend on what was decoded before it; the
        drafter must not follow the base's states of a text; and prompts must be read in chunks.
        """
        is_fit = self.chunked_prefill and self.base.is_exact and not self._decoder.drafter.reads_text
        self._decoder.prefixes = PrefixCache(num_tokens) if is_fit and num_tokens else None
        return self._decoder.prefixes is not None

    def run(self) -> None:
        """Steps until nothing is left to do."""
        while not self.is_idle:
            self.step()

    def cancel(self, request: Request) -> None:
        """Ends an answer where it is; nothing happens when it has ended."""
        if request.generation is None:
            request.end("cancelled")
            if request in self._waiting:
                self._waiting.remove(request)

    def _fill(self) -> None:
        """Gives places to waiting requests, the places of ended answers first; closes the places that stay empty."""
        places = [row for row, request in enumerate(self._live) if request.generation is not None]
        free = [*places, *range(len(self._live), self.num_rows)]
        long = self._next_long(len(free))
        if long is not None:
            free.pop()  # the long prompt's
        new_requests = deque(islice((r for r in self._waiting if not self._is_long(r)), len(free)))
        taken = free[: len(new_requests)]
        for run in _runs(taken):
            # Longest first: a prompt that was read to its end stays out of the next chunk.
            new = sorted((new_requests.popleft() for _ in run), key=lambda request: -len(request.prompt))
            self._decoder.add(run[0], new)
            for request in new:  # only now: where reading fails, they still wait
                self._waiting.remove(request)
                request.admit()
            self._live[run[0] : run[-1] + 1] = new
        for row in reversed(places[len(taken) :]):  # the highest first: the row that moves down is alive
            self._decoder.swap_remove(row)
            last = self._live.pop()
            if row < len(self._live):
                self._live[row] = last
        if long is not None and self._decoder.read_piece(long):
            self._waiting.remove(long)
            long.admit()
            self._live.append(long)

    def _is_long(self, request: Request) -> bool:
        """Whether its prompt is read in pieces."""
        return self.chunked_prefill and len(request.prompt) > CHUNK + 1

    def _next_long(self, num_free: int) -> Request | None:
        """The long prompt whose turn it is: the one that is being read, else one of those that a place is free for."""
        if not num_free:
            return None
        if self._reading not in self._waiting:
            self._reading = next(filter(self._is_long, islice(self._waiting, num_free)), None)
        return self._reading


def _runs(rows: Sequence[int]) -> list[list[int]]:
    """Ascending rows, cut where they are not neighbours: [1, 2, 5] -> [[1, 2], [5]]."""
    runs: list[list[int]] = []
    for row in rows:
        if runs and runs[-1][-1] == row - 1:
            runs[-1].append(row)
        else:
            runs.append([row])
    return runs
