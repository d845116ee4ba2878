"""Progress of a long job: a bar with rate and time left on a terminal, a plain line now and then elsewhere."""

import logging
import sys
import time

from tqdm import tqdm

LINE_EVERY_S = 10.0  # often enough to see that it works, rarely enough to read a log
log = logging.getLogger(__name__)


class Progress:
    """Counts the items of a job; `start` of them were done by an earlier run.

    Without a terminal a line is logged every LINE_EVERY_S seconds and one at the end. Not `is_shown` (another rank
    shows it): nothing is.
    """

    def __init__(self, name: str, total: int, unit: str, start: int = 0, is_shown: bool = True) -> None:
        self._name = name
        self._total = total
        self._unit = unit
        self._done = self._start = self._said = start
        self._tokens = 0
        self._facts = ""
        self._begin = self._last_line = time.perf_counter()
        self._is_shown = is_shown
        has_bar = is_shown and sys.stderr.isatty()
        self._bar = (
            tqdm(total=total, initial=start, desc=name, unit=f" {unit}", dynamic_ncols=True) if has_bar else None
        )

    def advance(self, items: int = 1, tokens: int = 0, facts: str | None = None) -> None:
        """So many more items are done. `tokens` gives a rate over the whole job; `facts` (the loss) stay until others
        come."""
        self._done += items
        self._tokens += tokens
        if facts is not None:
            self._facts = facts
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(self._known()), refresh=False)
            self._bar.update(items)
        elif time.perf_counter() - self._last_line >= LINE_EVERY_S:
            self._say()

    def close(self) -> None:
        """Says how far it came, if anything happened since the last line, and leaves the terminal tidy."""
        if self._bar is not None:
            self._bar.close()
        elif self._done > self._said:
            self._say()

    def _known(self) -> list[str]:
        speed = f"{self._tokens / self._seconds():,.0f} tokens/s" if self._tokens else ""
        return [fact for fact in (self._facts, speed) if fact]

    def _seconds(self) -> float:
        return max(time.perf_counter() - self._begin, 1e-9)

    def _say(self) -> None:
        if not self._is_shown:
            return
        self._last_line = time.perf_counter()
        self._said = self._done
        seconds = self._seconds()
        left = (self._total - self._done) * seconds / max(self._done - self._start, 1)
        times = [f"{_span(seconds)} gone", f"{_span(left)} left"]
        log.info("%s %d/%d %s: %s", self._name, self._done, self._total, self._unit, ", ".join(self._known() + times))


def _span(seconds: float) -> str:
    """A time that a person waits."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
