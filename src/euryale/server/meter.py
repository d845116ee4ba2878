"""What the whole server did in the last second, for the page."""

import time
from collections import deque
from typing import NamedTuple

from euryale.server.tickets import Report

WINDOW_SECONDS = 1.0


class _Step(NamedTuple):
    at: float
    num_tokens: int
    num_rows: int


class Meter:
    """Rates over the last second; in the event loop."""

    def __init__(self) -> None:
        self.num_live = 0
        self.num_waiting = 0
        self._steps: deque[_Step] = deque()

    def observe(self, report: Report) -> None:
        self.num_live, self.num_waiting = report.num_live, report.num_waiting
        if report.num_rows:
            num_tokens = sum(len(progress.ids) for _, progress in report.progress)
            self._steps.append(_Step(report.at, num_tokens, report.num_rows))
        self._forget()

    def tokens_per_second(self) -> float:
        self._forget()
        return round(sum(step.num_tokens for step in self._steps) / WINDOW_SECONDS, 3)

    def tau(self) -> float | None:
        """Tokens a step and sequence; None when nothing ran."""
        self._forget()
        num_rows = sum(step.num_rows for step in self._steps)
        return round(sum(step.num_tokens for step in self._steps) / num_rows, 3) if num_rows else None

    def _forget(self) -> None:
        oldest = time.perf_counter() - WINDOW_SECONDS
        while self._steps and self._steps[0].at < oldest:
            self._steps.popleft()
