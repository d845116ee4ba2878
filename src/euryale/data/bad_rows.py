"""Rows that cannot be used: the run stops, or they are counted and reported."""

from __future__ import annotations

import logging

from euryale.errors import UserError

logger = logging.getLogger(__name__)


class BadRows:
    """`data.on_error`: `stop` raises the first problem, `skip` counts them and logs one line at the end of a pass."""

    def __init__(self, on_error: str) -> None:
        self.count = 0  # over all passes
        self._on_error = on_error
        self._first: UserError | None = None
        self._num_reported = 0

    def meet(self, problem: UserError) -> None:
        """Raises the problem, or counts it."""
        if self._on_error == "stop":
            told = str(problem).rstrip(".")
            raise UserError(f"{told}. Mend it, or leave out what cannot be read: data.on_error=skip.") from problem
        self.count += 1
        self._first = self._first or problem

    def report(self) -> None:
        """Warns of what was met since the last report, if anything."""
        if self._first is not None:
            num_skipped = self.count - self._num_reported
            logger.warning("%d bad rows were skipped (data.on_error=skip); the first: %s", num_skipped, self._first)
        self.restart(self.count)

    def restart(self, count: int) -> None:
        """Goes on from a saved count; what it counts was another run's to report."""
        self.count = self._num_reported = count
        self._first = None
