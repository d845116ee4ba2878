"""The text of one answer, piece by piece."""

from collections.abc import Iterator, Sequence

from euryale.decoding.request import Generation, Request
from euryale.decoding.scheduler import Scheduler
from euryale.errors import UserError


class TextStream(Iterator[str]):
    """The text of one answer, piece by piece. Steps are taken while it is read."""

    def __init__(self, request: Request, scheduler: Scheduler) -> None:
        self._request = request
        self._scheduler = scheduler
        scheduler.add(request)

    def __next__(self) -> str:
        while not self._scheduler.is_idle:
            raise_errors(self._scheduler.step())
            if piece := self._request.new_text():
                return piece
        raise StopIteration

    @property
    def generation(self) -> Generation | None:
        """The whole answer; None while it is written."""
        return self._request.generation


def raise_errors(ended: Sequence[Request]) -> None:
    """Raises UserError for the first request that no token could follow."""
    for request in ended:
        if request.error is not None:
            raise UserError(request.error)
