"""What passes between the event loop and the engine thread: jobs one way, the news of a step the other."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from euryale.server.backend import Job, Progress
from euryale.server.collector import Collector
from euryale.server.errors import ApiError


class Ticket(NamedTuple):
    """A job and the place in a collector where its news belongs."""

    job: Job
    collector: Collector
    place: int
    request_id: str


@dataclass
class Report:
    """What the event loop is told after a step, and where jobs were admitted or dropped between two steps."""

    admitted: list[Ticket] = field(default_factory=list)
    progress: list[tuple[Ticket, Progress]] = field(default_factory=list)
    failed: list[tuple[Ticket, ApiError]] = field(default_factory=list)
    dropped: Sequence[Job] = ()  # cancelled
    num_rows: int = 0  # that took the step; 0: there was none
    num_nodes: int = 0  # of a row's tree in it
    seconds: dict[str, float] = field(default_factory=dict)  # of its parts
    is_restart: bool = False  # the engine was made anew
    at: float = 0.0  # on the clock of time.perf_counter
    num_live: int = 0
    num_waiting: int = 0

    @property
    def gone(self) -> list[Job]:
        """Jobs that are over, however they ended."""
        ended = [ticket.job for ticket, progress in self.progress if progress.ending is not None]
        return [*ended, *(ticket.job for ticket, _ in self.failed), *self.dropped]

    def deliver(self) -> None:
        """News to its readers; in the event loop."""
        for ticket in self.admitted:
            ticket.collector.admit(ticket.place, self.at)
        for ticket, progress in self.progress:
            ticket.collector.put(ticket.place, progress, self.at)
        for ticket, error in self.failed:
            ticket.collector.fail(ticket.place, error)
