"""What all routes share: the engine thread, places, tokens and metrics, and in which state the server is."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import NamedTuple

from euryale.decoding.sampling import Sampling
from euryale.server.admission import Admission, Places
from euryale.server.backend import Backend, Job
from euryale.server.engine_thread import EngineThread
from euryale.server.errors import not_alive, shutting_down
from euryale.server.generation import Generation
from euryale.server.limits import MAX_SEQUENCES, Timeouts
from euryale.server.meter import Meter
from euryale.server.metrics import Metrics
from euryale.server.planning import Plan
from euryale.server.tickets import Report
from euryale.server.tokens import Tokens

log = logging.getLogger(__name__)


class ModelName(NamedTuple):
    """The model as clients see it."""

    name: str
    created: int  # Unix time
    version: str  # of euryale


@dataclass
class Totals:
    """What the server did, for its last line."""

    num_requests: int = 0
    num_tokens: int = 0


class Service:
    """Made before the event loop runs; `start` and `stop` are called within it."""

    def __init__(
        self,
        backend: Backend,
        tokens: Tokens,
        model: ModelName,
        max_waiting: int,
        timeouts: Timeouts | None = None,
        warm_up: bool = True,
    ) -> None:
        self.info = backend.info
        self.tokens = tokens
        self.model = model
        self.timeouts = timeouts or Timeouts()
        self.admission = Admission(backend.info.num_rows + max_waiting)
        self.metrics = Metrics(model.name, backend.info)
        self.meter = Meter()
        self.totals = Totals()
        self.is_draining = False
        self.stopping = asyncio.Event()  # set when those that are left are cut off
        self.on_death: Callable[[], None] = lambda: None
        self.gather: Callable[[], Awaitable[bytes]] | None = (
            None  # metrics of all replicas, where this is one of several
        )
        self._backend = backend
        self._warm_up = warm_up
        self._thread: EngineThread | None = None

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        batches = _warm_up_batches(self._backend) if self._warm_up else []
        self._thread = EngineThread(self._backend, loop, self._observe, self._die, batches, self.timeouts)
        self._thread.start()

    async def stop(self) -> None:
        """Ends the engine thread; requests that are left get an error."""
        self.is_draining = True
        self.stopping.set()
        if not await asyncio.to_thread(self.thread.stop):
            log.warning("the engine is still in a step; the process ends without it")
        self.tokens.close()

    @property
    def thread(self) -> EngineThread:
        assert self._thread is not None, "start() makes it"
        return self._thread

    @property
    def max_sequences(self) -> int:
        """Of one request."""
        return min(MAX_SEQUENCES, self.admission.num_places)

    def admit(self, num_sequences: int) -> Places:
        """Raises ApiError 503: no place is free, the server shuts down, the engine has given up."""
        if self.thread.is_dead:
            raise not_alive()
        if self.is_draining:
            raise shutting_down()
        return self.admission.enter(num_sequences)

    def generate(self, plan: Plan, request_id: str) -> Generation:
        """Starts a plan's jobs. Raises ApiError 503."""
        generation = Generation(plan, request_id, self.thread, time.perf_counter(), self.timeouts.events)
        generation.start()
        return generation

    async def exposition(self) -> bytes:
        """What Prometheus reads."""
        return self.metrics.exposition() if self.gather is None else await self.gather()

    async def drain(self, seconds: float) -> None:
        """Takes no new requests, waits for those that are being answered, and cuts off what is left after a while."""
        self.is_draining = True
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while self.admission.num_taken and loop.time() < end:
            await asyncio.sleep(0.02)
        self.stopping.set()

    @property
    def is_alive(self) -> bool:
        """Whether restarting the process would not help."""
        return not self.thread.is_dead and not self.thread.is_stalled

    @property
    def is_ready(self) -> bool:
        """Whether new requests should come here."""
        return self.is_alive and self.thread.is_ready and not self.is_draining

    def _observe(self, report: Report) -> None:
        self.metrics.observe(report)
        self.meter.observe(report)
        self.totals.num_tokens += sum(len(progress.ids) for _, progress in report.progress)

    def _die(self) -> None:
        self.on_death()


def _warm_up_batches(backend: Backend) -> list[list[Job]]:
    """The longest prompt alone, then a full batch: no client waits for the first use of the largest shapes."""
    info = backend.info
    longest = Job([1 % info.vocab_size] * (info.row_tokens - 1), 1, Sampling(), 0, ignore_eos=True)
    num_short = min(4, info.row_tokens - 1)
    prompts = [[(row + 1) % info.vocab_size] * num_short for row in range(info.num_rows)]
    num_new = min(8, info.row_tokens - num_short)
    return [[longest], [Job(prompt, num_new, Sampling(temperature=1.0), 0, ignore_eos=True) for prompt in prompts]]
