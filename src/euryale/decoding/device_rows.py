"""The live rows of a decoder while their steps run on the device (device_loop.py): what the host knows of them.

Reports come one step late. Before a row comes, goes, or takes a step of the host's own, the rows are settled: the last
report is read, and the state comes back to the decoder. What was gained by then is held until the next step tells it.
"""

import logging
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from euryale.base.base import Base
from euryale.base.kernel_llama import KernelLlama
from euryale.decoding.broken import why_broken
from euryale.decoding.config import AcceptConfig
from euryale.decoding.device_loop import DeviceLoop, Gain
from euryale.decoding.drafters.interface import Drafter
from euryale.decoding.kv_cache import KVCache
from euryale.decoding.request import Request
from euryale.decoding.token_tables import TokenTables
from euryale.decoding.tree_pass import TreePass


class Told(NamedTuple):
    """What a step tells of a row."""

    tokens: list[int]
    why_broken: str | None = None


_NOTHING = Told([])
log = logging.getLogger(__name__)


class DeviceRows:
    """Lists of the live rows are those of the decoder, and are kept up to date in place."""

    def __init__(
        self, base: Base, loop: DeviceLoop, cache: KVCache, requests: list[Request], texts: list[list[int]]
    ) -> None:
        self._base, self._loop, self._cache = base, loop, cache
        self._requests, self._texts = requests, texts
        self._held: list[Told] | None = None
        self._broken: dict[int, str] = {}  # rows that were found out since rows came or went
        self._is_taken: bool | None = None  # None: not asked since rows came or went
        self._said: set[str] = set()

    @staticmethod
    def of(
        base: Base,
        drafter: Drafter,
        tree_pass: TreePass,
        rule: AcceptConfig,
        cache: KVCache,
        tables: TokenTables,
        requests: list[Request],
        texts: list[list[int]],
    ) -> "DeviceRows | None":
        """None: steps of this drafter, this rule or this base do not run on the device; the log says why."""
        if not isinstance(tree_pass.forward, KernelLlama):
            return None
        if problem := DeviceLoop.why_not(drafter, tree_pass):
            log.info("steps are not captured, because %s", problem)
            return None
        return DeviceRows(base, DeviceLoop(base, drafter, tree_pass, cache, rule, tables), cache, requests, texts)

    def add(self, row: int, num_rows: int) -> None:
        """Settled rows, of which these are new."""
        self._is_taken, self._broken = None, {}
        self._loop.add(row, num_rows)
        if self._held is not None:
            self._held[row : row + num_rows] = [_NOTHING] * num_rows

    def swap_remove(self, row: int) -> None:
        """Settled rows, of which the last takes the place of an ended one."""
        self._is_taken, self._broken = None, {}
        self._loop.swap_remove(row)
        if self._held is not None:
            self._held[row] = self._held[-1]
            self._held.pop()

    @property
    def takes_step(self) -> bool:
        """Whether the next step runs on the device; asked anew when rows have come or gone."""
        if self._is_taken is None:
            problem = self._loop.why_not_rows(self._requests)
            if problem is not None and problem not in self._said:
                self._said.add(problem)
                log.info("steps are not captured while %s", problem)
            self._is_taken = problem is None
        return self._is_taken

    @property
    def num_nodes(self) -> int:
        """Of the step that is told."""
        return self._loop.num_nodes

    def step(self, root_B: Tensor, hidden_BC: Tensor) -> list[Told]:
        """Launches a step. Returns what the one before it gained, or what was held; of new rows nothing yet.

        root_B and hidden_BC: of rows that were settled.
        """
        if not self._loop.is_loaded:
            self._loop.load(self._requests, self._texts, root_B, hidden_BC)
        gains = self._loop.advance()
        if gains is not None:
            self._take(gains)
        return self.tell() or [_NOTHING] * len(self._texts)

    def settle(self) -> tuple[Tensor, Tensor] | None:
        """Waits for the last step: root and hidden states after it. None: nothing is loaded, the decoder has them."""
        if not self._loop.is_loaded:
            return None
        finished = self._loop.finish()
        self._take(finished.gains)
        return finished.root_B, finished.hidden_BC

    def tell(self) -> list[Told] | None:
        """What is held, once; None: nothing was gained."""
        held, self._held = self._held, None
        return held if held and any(told != _NOTHING for told in held) else None

    def _take(self, gains: Sequence[Gain]) -> None:
        assert self._held is None, "what is held is told before more is read"
        self._held = []
        for row, (gain, text, request) in enumerate(zip(gains, self._texts, self._requests, strict=True)):
            if gain.is_broken and row not in self._broken:
                self._broken[row] = why_broken(self._base, text, text[-1:], request.sampling)
                self._cache.wipe(row)
            # The steps of an answer that has ended may still run.
            if request.record is not None and request.finish_reason is None and row not in self._broken:
                request.record.take_ranked(gain.tokens, gain.logprobs)
            text += gain.tokens
            self._cache.lengths[row] = gain.length
            self._held.append(Told(gain.tokens, self._broken.get(row)))
