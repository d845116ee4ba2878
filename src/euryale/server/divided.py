"""A server whose base several processes divide: the first one answers, the others take the same steps.

A pass needs all processes, over the same rows. The engine thread of the first one knows which jobs came and which were
cancelled; before each step the others are told, and then all take it. From the same jobs, seeds included, each arrives
at the same tokens, so nothing else is sent.

A step that fails may leave processes in the middle of a pass, each at another place: then the server ends.
"""

import threading
from contextlib import suppress
from itertools import count
from typing import NamedTuple

from euryale.server.backend import Backend, Job, Progress
from euryale.system.channel import Channel


class Start(NamedTuple):
    """A job begins."""

    number: int
    job: Job


class Cancel(NamedTuple):
    """A job ends without a word."""

    number: int


class Stop(NamedTuple):
    """No step comes after this."""


Orders = list[Start | Cancel]  # what happened since the last step, in this order; another step follows


class LeadingBackend:
    """The backend of the first process (backend.py)."""

    def __init__(self, backend: Backend, channel: Channel) -> None:
        self.info = backend.info
        self._backend = backend
        self._channel = channel
        self._orders: Orders = []
        self._numbers: dict[Job, int] = {}  # of the live jobs
        self._next_number = count()
        self._in_step = threading.Lock()

    @property
    def num_live(self) -> int:
        return self._backend.num_live

    def start(self, job: Job) -> None:
        """Takes a job; what is refused here (UserError) the others never hear of."""
        self._backend.start(job)
        self._numbers[job] = next(self._next_number)
        self._orders.append(Start(self._numbers[job], job))

    def step(self) -> list[Progress]:
        """One step in all processes."""
        with self._in_step:
            orders, self._orders = self._orders, []
            self._channel.say(orders)
            news = self._backend.step()
        for item in news:
            if item.is_last:
                del self._numbers[item.job]
        return news

    def cancel(self, job: Job) -> None:
        self._backend.cancel(job)
        number = self._numbers.pop(job, None)
        if number is not None:
            self._orders.append(Cancel(number))

    def reset(self) -> None:
        """Raises RuntimeError: processes that are in the middle of a pass cannot begin anew together."""
        raise RuntimeError("a base that several processes divide cannot go on after a failed step")

    def seconds(self) -> dict[str, float]:
        return self._backend.seconds()

    def num_nodes(self) -> int:
        return self._backend.num_nodes()

    def close(self) -> None:
        """Lets the others end. Where the engine thread is still in a step they end with this process."""
        if self._in_step.acquire(blocking=False):
            with suppress(RuntimeError):  # they have ended already
                self._channel.say(Stop())


def follow(backend: Backend, channel: Channel) -> None:
    """Takes the steps of the first process until it stops. Raises RuntimeError where that one is gone."""
    jobs: dict[int, Job] = {}
    while not isinstance(orders := channel.hear(), Stop):
        assert isinstance(orders, list), orders
        for order in orders:
            if isinstance(order, Start):
                jobs[order.number] = order.job
                backend.start(order.job)
            else:
                backend.cancel(jobs.pop(order.number))
        ended = {item.job for item in backend.step() if item.is_last}
        jobs = {number: job for number, job in jobs.items() if job not in ended}
