"""Transforms of any source of rows: held-out split, shuffling, joined lines, a mixture.

Each keeps the contract of `Source`: an exact cursor. That is why shuffling is by windows and not by a rolling buffer:
a window can be read again from its start.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from typing import Any

from euryale.data.documents import Splitter, lines_of
from euryale.data.rows import Row, Source, is_held_out, row_from_text
from euryale.errors import UserError


class Split:
    """The rows on one side of the held-out split: `one_in` of them, by a hash of their key, or all others."""

    def __init__(self, source: Source, held_out: bool, one_in: int) -> None:
        self._source = source
        self._held_out = held_out
        self._one_in = one_in

    @property
    def num_skipped(self) -> int:
        return self._source.num_skipped

    def __iter__(self) -> Iterator[Row]:
        return (row for row in self._source if is_held_out(row.key, self._one_in) == self._held_out)

    def state_dict(self) -> dict[str, Any]:
        return self._source.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._source.load_state_dict(state)


class Shuffled:
    """Windows of `window` rows, each in a random order that depends on (seed, number of the window) alone.

    The cursor is the inner cursor at the start of the window and the position in it, so that resuming reads at most
    one window again and no row is lost, which a rolling shuffle buffer cannot promise.
    """

    def __init__(self, source: Source, window: int, seed: int) -> None:
        self._source = source
        self._window = window
        self._seed = seed
        self._num_windows = 0  # done, over all passes: every pass has an order of its own
        self._position = 0
        self._start: dict[str, Any] | None = None  # the inner cursor at the start of the window that is being given

    @property
    def num_skipped(self) -> int:
        return self._source.num_skipped

    def __iter__(self) -> Iterator[Row]:
        if self._start is not None:  # an earlier iterator was left in the middle of a window: read that again
            self._source.load_state_dict(self._start)
        rows = iter(self._source)
        while True:
            self._start = self._source.state_dict()
            window = list(islice(rows, self._window))
            random.Random(f"window {self._seed} {self._num_windows}").shuffle(window)
            while self._position < len(window):
                self._position += 1
                yield window[self._position - 1]
            self._start, self._position = None, 0
            if not window:
                return
            self._num_windows += 1

    def state_dict(self) -> dict[str, Any]:
        start = self._source.state_dict() if self._start is None else self._start
        return {"source": start, "num_windows": self._num_windows, "position": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._source.load_state_dict(state["source"])
        self._start = None
        self._num_windows = state["num_windows"]
        self._position = state["position"]


class Joined:
    """Rows that are consecutive lines of one text (WikiText on the hub), joined and divided into documents."""

    def __init__(self, source: Source, rule: str) -> None:
        self._source = source
        self._splitter = Splitter(rule)
        self._ready: list[Row] = []  # documents that ended with the last line and were not given yet
        self._origin = ""  # of the last line
        self._has_ended = False  # the lines have, but not all documents were given yet

    @property
    def num_skipped(self) -> int:
        return self._source.num_skipped

    def __iter__(self) -> Iterator[Row]:
        yield from self._give()
        if not self._has_ended:
            for line in self._source:
                self._origin = line.origin
                if line.text is None:
                    raise UserError(f"{line.origin}: data.join_rows=true needs rows of text; got a conversation")
                for text in lines_of(line.text if line.text.endswith("\n") else line.text + "\n"):
                    self._add(self._splitter.push(text))
                yield from self._give()
            self._add([self._splitter.flush()])
            self._has_ended = True
            yield from self._give()
        self._has_ended = False

    def _add(self, texts: list[str]) -> None:
        self._ready += [row_from_text(text, self._origin) for text in texts if text.strip()]

    def _give(self) -> Iterator[Row]:
        while self._ready:
            yield self._ready.pop(0)

    def state_dict(self) -> dict[str, Any]:
        return {
            "source": self._source.state_dict(),
            "pending": self._splitter.pending,
            "ready": [[row.text, row.origin] for row in self._ready],
            "origin": self._origin,
            "has_ended": self._has_ended,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._source.load_state_dict(state["source"])
        self._splitter = Splitter(self._splitter.rule, state["pending"])
        self._ready = [row_from_text(text, origin) for text, origin in state["ready"]]
        self._origin = state["origin"]
        self._has_ended = state["has_ended"]


class Mix:
    """Rows drawn from several sources, in proportion to their weights (by rows, not by tokens).

    Which source is next depends on (seed, number of the draw) alone. With `repeat` a source that ends starts again and
    a pass ends when each has ended once, so that the proportions hold throughout; without, each row comes once.
    """

    def __init__(self, sources: list[Source], weights: list[float], seed: int, repeat: bool) -> None:
        self._sources = sources
        self._weights = weights
        self._seed = seed
        self._repeat = repeat
        self._num_draws = 0
        self._has_ended = [False] * len(sources)

    @property
    def num_skipped(self) -> int:
        return sum(source.num_skipped for source in self._sources)

    def __iter__(self) -> Iterator[Row]:
        iterators = [iter(source) for source in self._sources]
        while not all(self._has_ended):
            index = self._draw()
            row = next(iterators[index], None)
            if row is None:
                self._has_ended[index] = True
                if not self._repeat or all(self._has_ended):
                    continue
                iterators[index] = iter(self._sources[index])
                row = next(iterators[index], None)
                if row is None:
                    raise UserError(f"data.mix[{index}] gave no row in a whole pass. Remove it or give it more data")
            self._num_draws += 1
            yield row
        self._has_ended = [False] * len(self._sources)

    def _draw(self) -> int:
        weights = self._weights
        if not self._repeat:
            weights = [0.0 if ended else weight for weight, ended in zip(weights, self._has_ended, strict=True)]
        chooser = random.Random(f"mix {self._seed} {self._num_draws}")
        return chooser.choices(range(len(weights)), weights)[0]

    def state_dict(self) -> dict[str, Any]:
        return {
            "sources": [source.state_dict() for source in self._sources],
            "num_draws": self._num_draws,
            "has_ended": list(self._has_ended),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for source, inner in zip(self._sources, state["sources"], strict=True):
            source.load_state_dict(inner)
        self._num_draws = state["num_draws"]
        self._has_ended = list(state["has_ended"])
