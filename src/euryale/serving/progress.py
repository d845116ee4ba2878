"""How far is a long job? A bar with rate and time left on a terminal, a plain line now and then elsewhere."""

import sys
import time

from tqdm import tqdm

_LINE_EVERY_S = 10.0  # often enough to see that it lives, rarely enough to read a log


class Progress:
    """Counts items of a job; `start` items were done by an earlier run."""

    def __init__(self, name: str, total: int, unit: str, start: int = 0) -> None:
        self.name = name
        self.total = total
        self.unit = unit
        self._done = self._start = start
        self._tokens = 0
        self._begin = self._last_line = time.perf_counter()
        is_terminal = sys.stderr.isatty()
        self._bar = tqdm(total=total, initial=start, desc=name, unit=f" {unit}") if is_terminal else None

    def advance(self, items: int, tokens: int = 0) -> None:
        self._done += items
        self._tokens += tokens
        if self._bar is not None:
            if tokens:
                self._bar.set_postfix_str(f"{self._tokens / self._seconds():.0f} tokens/s", refresh=False)
            self._bar.update(items)
        elif time.perf_counter() - self._last_line > _LINE_EVERY_S:
            self._print()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        else:
            self._print()

    def _seconds(self) -> float:
        return max(time.perf_counter() - self._begin, 1e-9)

    def _print(self) -> None:
        self._last_line = time.perf_counter()
        seconds = self._seconds()
        rate = (self._done - self._start) / seconds
        left = (self.total - self._done) / rate if rate else 0.0
        speed = f", {self._tokens / seconds:.0f} tokens/s" if self._tokens else ""
        print(
            f"{self.name}: {self._done}/{self.total} {self.unit}{speed}, {seconds:.0f} s gone, {left:.0f} s left",
            file=sys.stderr,
            flush=True,
        )
