"""The hand-over from the engine thread to one reader, which may be slow.

There is one slot a sequence. What arrives before the reader comes back is merged into it, so a slow reader never
holds a row and costs no more memory than its answer. A quick model's reader is not woken for every step: an event of a
stream costs the server, which shares the interpreter with the engine, as much as a tenth of a small model's step.
Everything here runs in the event loop.
"""

import asyncio
import math
from dataclasses import dataclass, field
from typing import NamedTuple

from euryale.decoding.record import TokenLogprob
from euryale.server.backend import Ending, Progress, StepView
from euryale.server.errors import ApiError

MAX_STEPS = 64  # watched steps that wait for the reader; beyond them the oldest are dropped


@dataclass
class Timing:
    """Seconds on the clock of time.perf_counter; None: not yet."""

    submitted: float
    admitted: float | None = None
    first_token: float | None = None
    ended: float | None = None


class SeenStep(NamedTuple):
    """A watched step that waits for its reader."""

    number: int  # from 0, in the order they were taken
    view: StepView
    text: str
    at: float  # when it ended, on the clock of Timing


@dataclass
class News:
    """What happened to one sequence since its reader last looked."""

    ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob | None] | None = None
    steps: list[SeenStep] = field(default_factory=list)
    num_dropped: int = 0  # steps lost before `steps`
    missed: str = ""  # their text
    ending: Ending | None = None
    error: ApiError | None = None
    is_admitted: bool = False  # it was admitted since


class Collector:
    """The news of the sequences of one request."""

    def __init__(self, num_sequences: int, now: float, pause: float = 0.0) -> None:
        """pause: seconds after the reader's last look for which more tokens wait; a first token and an end do not."""
        self.timings = [Timing(now) for _ in range(num_sequences)]
        self._slots: list[News | None] = [None] * num_sequences
        self._num_steps = [0] * num_sequences
        self._has_news = asyncio.Event()
        self._pause = pause
        self._last_look = -math.inf  # on the clock of the event loop
        self._timer: asyncio.TimerHandle | None = None

    def admit(self, index: int, now: float) -> None:
        self.timings[index].admitted = now
        self._slot(index).is_admitted = True
        self._tell(is_urgent=True)

    def put(self, index: int, progress: Progress, now: float) -> None:
        """Merges what a step brought."""
        timing, news = self.timings[index], self._slot(index)
        is_first = bool(progress.ids) and timing.first_token is None
        if is_first:
            timing.first_token = now
        if progress.ending is not None:
            timing.ended = now
        news.ids += progress.ids
        news.text += progress.text
        news.logprobs += progress.logprobs
        news.prompt_logprobs = progress.prompt_logprobs or news.prompt_logprobs
        news.ending = progress.ending
        if progress.view is not None:
            news.steps.append(SeenStep(self._num_steps[index], progress.view, progress.text, now))
            self._num_steps[index] += 1
            if len(news.steps) > MAX_STEPS:
                news.num_dropped += 1
                news.missed += news.steps.pop(0).text
        self._tell(is_urgent=is_first or progress.ending is not None)

    def fail(self, index: int, error: ApiError) -> None:
        self._slot(index).error = error
        self._tell(is_urgent=True)

    async def take(self) -> list[tuple[int, News]]:
        """Waits for news, and gives those of each sequence that has some."""
        await self._has_news.wait()
        self._has_news.clear()
        self._last_look = asyncio.get_running_loop().time()
        taken = [(index, news) for index, news in enumerate(self._slots) if news is not None]
        self._slots = [None] * len(self._slots)
        return taken

    def _tell(self, is_urgent: bool) -> None:
        """Wakes the reader, now or when its pause is over."""
        loop = asyncio.get_running_loop()
        due = self._last_look + self._pause
        if is_urgent or loop.time() >= due:
            self._wake()
        elif self._timer is None:
            self._timer = loop.call_at(due, self._wake)

    def _wake(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._has_news.set()

    def _slot(self, index: int) -> News:
        news = self._slots[index]
        if news is None:
            news = self._slots[index] = News()
        return news
