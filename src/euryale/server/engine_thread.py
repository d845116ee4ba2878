"""The thread that owns the engine: it takes commands between steps and posts the news of each step to the event loop.

A step that raises costs the jobs that were live. The engine is made anew and goes on with those that wait; after three
such failures within a minute it gives up, and the process has to be started again.
"""

import asyncio
import logging
import queue
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from euryale.errors import UserError
from euryale.server.backend import Backend, Job
from euryale.server.errors import bad_request, failed, not_alive, shutting_down
from euryale.server.limits import Timeouts
from euryale.server.tickets import Report, Ticket
from euryale.server.traces import trace_of

MAX_FAILURES = 3
FAILURE_WINDOW_SECONDS = 60.0
log = logging.getLogger(__name__)


class _Cancel(NamedTuple):
    jobs: Sequence[Job]


class _Stop(NamedTuple):
    pass


class EngineThread:
    """Runs a backend. `submit` and `cancel` are called from the event loop, whose callbacks are told the rest."""

    def __init__(
        self,
        backend: Backend,
        loop: asyncio.AbstractEventLoop,
        on_report: Callable[[Report], None],
        on_death: Callable[[], None],
        warm_up: Sequence[Sequence[Job]] = (),
        timeouts: Timeouts | None = None,
    ) -> None:
        """warm_up: batches of jobs that run before the engine counts as ready."""
        self.is_ready = False
        self.is_dead = False
        self._backend = backend
        self._loop = loop
        self._on_report = on_report
        self._on_death = on_death
        self._warm_up = warm_up
        self._timeouts = timeouts or Timeouts()
        self._commands: queue.SimpleQueue[list[Ticket] | _Cancel | _Stop] = queue.SimpleQueue()
        self._waiting: deque[Ticket] = deque()
        self._live: dict[Job, Ticket] = {}
        self._is_stopping = False
        self._busy_since: float | None = None
        self._failures: deque[float] = deque(maxlen=MAX_FAILURES)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, tickets: list[Ticket]) -> None:
        """Queues jobs. Raises ApiError 503 after the engine has given up."""
        if self.is_dead:
            raise not_alive()
        self._commands.put(tickets)

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Ends jobs before the next step; those that have ended are left alone."""
        self._commands.put(_Cancel(jobs))

    def stop(self, timeout: float = 10.0) -> bool:
        """Ends the jobs that are left with an error and the thread with them. Blocks; False: it still runs."""
        self._is_stopping = True
        self._commands.put(_Stop())
        self._thread.join(timeout)
        return not self._thread.is_alive()

    @property
    def is_stalled(self) -> bool:
        """Whether a step has been running for longer than any should."""
        since = self._busy_since
        return since is not None and time.perf_counter() - since > self._timeouts.step

    def _run(self) -> None:
        try:
            self._take_warm_up()
        except Exception as error:  # whatever it was, the engine cannot be used
            log.error("the warm-up failed: %s", trace_of(error))
            self._die()
            return
        self.is_ready = True
        while not self._is_stopping and not self.is_dead:
            self._take_commands()
            try:
                self._admit()
                if self._live:
                    self._step()
            except Exception as error:  # one bad step must not take down those who wait
                self._recover(error)
        self._commands.put(_Stop())
        self._take_commands()
        ending = not_alive() if self.is_dead else shutting_down()
        self._post(Report(failed=[(ticket, ending) for ticket in [*self._live.values(), *self._waiting]]))

    def _take_warm_up(self) -> None:
        for batch in self._warm_up:
            self._busy_since = time.perf_counter()
            for job in batch:
                self._backend.start(job)
            while self._backend.num_live and not self._is_stopping:
                self._backend.step()
                self._busy_since = time.perf_counter()
        self._busy_since = None

    def _take_commands(self) -> None:
        """Drains the queue; blocks where there is nothing else to do."""
        is_idle = not self._live and not self._waiting
        while True:
            try:
                command = self._commands.get(block=is_idle)
            except queue.Empty:
                return
            is_idle = False
            if isinstance(command, _Stop):
                return
            if isinstance(command, _Cancel):
                self._drop(command.jobs)
            else:
                self._waiting.extend(command)

    def _drop(self, jobs: Sequence[Job]) -> None:
        gone = set(jobs)
        if any(ticket.job in gone for ticket in self._waiting):
            self._waiting = deque(ticket for ticket in self._waiting if ticket.job not in gone)
        for job in jobs:
            if self._live.pop(job, None) is not None:
                self._backend.cancel(job)
        self._post(Report(dropped=jobs))

    def _admit(self) -> None:
        """Starts as many waiting jobs as there are free rows."""
        report = Report()
        while self._waiting and len(self._live) < self._backend.info.num_rows:
            ticket = self._waiting.popleft()
            self._live[ticket.job] = ticket
            try:
                self._backend.start(ticket.job)
            except UserError as error:
                del self._live[ticket.job]
                report.failed.append((ticket, bad_request(str(error))))
            else:
                report.admitted.append(ticket)
        if report.admitted or report.failed:
            self._post(report)

    def _step(self) -> None:
        num_rows, before = len(self._live), self._backend.seconds()
        self._busy_since = time.perf_counter()
        try:
            news = self._backend.step()
        finally:
            self._busy_since = None
        report = Report(num_rows=num_rows, num_nodes=self._backend.num_nodes())
        for item in news:
            ticket = self._live[item.job]
            if item.failure is None:
                report.progress.append((ticket, item))
            elif item.failure.is_users:
                report.failed.append((ticket, bad_request(item.failure.message)))
            else:
                log.error("%s: %s", ticket.request_id, item.failure.message)
                report.failed.append((ticket, failed(ticket.request_id)))
            if item.is_last:
                del self._live[item.job]
        report.seconds = {part: after - before[part] for part, after in self._backend.seconds().items()}
        self._post(report)

    def _recover(self, error: Exception) -> None:
        """The live jobs fail; a new engine goes on with the others, unless this happens too often."""
        log.error("a step failed with %d live requests: %s", len(self._live), trace_of(error))
        traceback.clear_frames(error.__traceback__)  # they hold the tensors of the step
        now = time.perf_counter()
        self._failures.append(now)
        lost, self._live = list(self._live.values()), {}
        self._post(Report(failed=[(ticket, failed(ticket.request_id)) for ticket in lost]))
        if len(self._failures) == MAX_FAILURES and now - self._failures[0] < FAILURE_WINDOW_SECONDS:
            self._die()
            return
        try:
            self._backend.reset()
        except Exception as reset_error:  # the memory of the old engine may be lost for good
            log.error("a new engine could not be made: %s", trace_of(reset_error))
            self._die()
            return
        self._post(Report(is_restart=True))

    def _die(self) -> None:
        log.error("the engine gives up")
        self.is_dead = True
        self._commands.put(_Stop())
        self._take_commands()
        self._post(Report(failed=[(ticket, not_alive()) for ticket in self._waiting]))
        self._waiting.clear()
        self._call(self._on_death)

    def _post(self, report: Report) -> None:
        report.at, report.num_live, report.num_waiting = time.perf_counter(), len(self._live), len(self._waiting)
        self._call(self._deliver, report)

    def _call(self, callback: Callable[..., None], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:  # the loop is closed: there is no one left to tell
            self._is_stopping = True

    def _deliver(self, report: Report) -> None:
        report.deliver()
        self._on_report(report)
