"""CUDA graphs of a step, by what their shapes depend on; without a card the step is called as it is.

The first steps of a kind run eagerly: kernels compile, and libraries take their workspaces, on the stream that is
captured later. All graphs share one pool of memory, which is safe because nothing in it outlives a replay. A step that
cannot be captured (memory is too short, an operation that no graph takes) stays eager, and the log says so once.

Not yet run on a GPU.
"""

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import torch

from euryale.system.memory import is_out_of_memory

EAGER_STEPS = 2
_MOST_GRAPHS = 128  # the latest used stay; eight numbers of rows times six sizes of an adaptive tree are 48
log = logging.getLogger(__name__)


class StepGraphs:
    """The graphs of one decoder."""

    def __init__(self, device: torch.device, captures: bool = True) -> None:
        """captures: False leaves every step eager."""
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" and captures else None
        self._device = device
        self._pool: Any = None  # torch's handle, from the first capture on
        self._graphs: OrderedDict[Hashable, torch.cuda.CUDAGraph] = OrderedDict()
        self._num_eager: Counter[Hashable] = Counter()
        self._eager_for_good: set[Hashable] = set()

    def run(self, key: Hashable, step: Callable[[], None]) -> None:
        """Runs `step`, whose tensors must be the same ones for equal keys, after all work queued so far."""
        if self._stream is None:
            step()
            return
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            self._run_on_card(key, step, self._stream)
        current.wait_stream(self._stream)

    def _run_on_card(self, key: Hashable, step: Callable[[], None], stream: torch.cuda.Stream) -> None:
        if key not in self._graphs:
            self._num_eager[key] += 1
            if (
                self._num_eager[key] <= EAGER_STEPS
                or key in self._eager_for_good
                or not self._capture(key, step, stream)
            ):
                step()
                return
        self._graphs.move_to_end(key)
        self._graphs[key].replay()

    def _capture(self, key: Hashable, step: Callable[[], None], stream: torch.cuda.Stream) -> bool:
        """False: it cannot be. Nothing has run in either case."""
        graph = torch.cuda.CUDAGraph()
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        try:
            # Other threads may use the card meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
                step()
        except RuntimeError as error:
            # What ends a capture that has failed may report less than what made it fail.
            causes = [cause for cause in (error.__context__, error) if cause is not None]
            reason = "no memory" if any(map(is_out_of_memory, causes)) else str(causes[0]).partition("\n")[0]
            self._eager_for_good.add(key)
            log.warning("no CUDA graph of the step %s (%s); such steps stay eager", key, reason)
            return False
        self._graphs[key] = graph
        while len(self._graphs) > _MOST_GRAPHS:
            forgotten, _ = self._graphs.popitem(last=False)
            self._num_eager[forgotten] = EAGER_STEPS
        log.info("captured the step %s as a CUDA graph", key)
        return True
