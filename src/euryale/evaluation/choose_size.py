"""Choice of a tree's size from noisy times of its steps.

A step takes no less time with more nodes, and no less with more levels. Single medians do not know that, and the best
of many noisy ratios is mostly the luckiest. So all sizes are fitted together by least squares under that order
(isotonic regression, Dykstra's projections), the best few are timed again, and of sizes whose speeds differ by less
than their error the smallest is chosen.
"""

import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple, TypeVar

Size = tuple[int, int | None]  # nodes of a tree, and the depth that it was held to (None: as deep as the heads)
Shape = tuple[int, int]  # nodes and depth that the tree has
Tree = TypeVar("Tree", bound=Hashable)  # what names one: a Size, or a dynamic tree

FINALISTS = 4  # trees that are timed again, as is the root alone
TIE = 0.01  # speeds this close are equal whatever the stated errors
_SWEEPS = 200  # of projections; 40 sizes come to rest after a few dozen
_STEP_OF_MEDIAN = 1.2533 * 1.4826  # standard error of a median, from the median absolute deviation of normal noise


class Measured(NamedTuple):
    """Milliseconds of a step, and the standard error of that number."""

    ms: float
    error_ms: float


def fit_times(turns_ms: Mapping[Tree, Sequence[float]], shapes: Mapping[Tree, Shape]) -> dict[Tree, Measured]:
    """A time for every size, which never falls with nodes or depth. turns_ms: one time a size and round.

    Rounds in which the whole machine was slow are brought to the pace of the others first.
    """
    medians = {size: statistics.median(turns) for size, turns in turns_ms.items()}
    rounds = zip(*turns_ms.values(), strict=True)
    paces = [statistics.median(ms / medians[size] for ms, size in zip(each, turns_ms, strict=True)) for each in rounds]
    level = {size: [ms / pace for ms, pace in zip(turns, paces, strict=True)] for size, turns in turns_ms.items()}
    medians = {size: statistics.median(turns) for size, turns in level.items()}
    errors = {size: error_of_median(turns) for size, turns in level.items()}
    logs = isotonic([math.log(ms) for ms in medians.values()], [shapes[size] for size in medians])
    return {size: Measured(math.exp(value), errors[size]) for size, value in zip(medians, logs, strict=True)}


def isotonic(values: Sequence[float], shapes: Sequence[Shape]) -> list[float]:
    """The nearest values, by least squares, that do not fall where both numbers of a shape grow or stay.

    Dykstra's algorithm: every pair in order is projected in turn, its last correction taken back before.
    """
    pairs = [
        (low, high)
        for low in range(len(shapes))
        for high in range(len(shapes))
        if low != high and shapes[low][0] <= shapes[high][0] and shapes[low][1] <= shapes[high][1]
    ]
    fitted, taken = list(values), [0.0] * len(pairs)
    for _ in range(_SWEEPS):
        most = 0.0
        for index, (low, high) in enumerate(pairs):
            below, above = fitted[low] + taken[index], fitted[high] - taken[index]
            half = max(0.0, (below - above) / 2)
            fitted[low], fitted[high] = below - half, above + half
            most = max(most, abs(half - taken[index]))
            taken[index] = half
        if most < 1e-9:
            break
    return fitted


def finalists(tau: Mapping[Size, float], times: Mapping[Size, Measured], shapes: Mapping[Size, Shape]) -> list[Size]:
    """The root alone, and the sizes that write the most tokens a millisecond; in the order of `times`."""
    order = sorted(times, key=lambda size: (-tau[size] / times[size].ms, shapes[size]))
    best = [size for size in order if shapes[size][0] > 1][:FINALISTS]
    return [size for size in times if shapes[size][0] == 1 or size in best]


def choose_size(tau: Mapping[Size, float], times: Mapping[Size, Measured], shapes: Mapping[Size, Shape]) -> Size:
    """The fastest of the sizes that were timed; of those within the error of it, the smallest."""
    speeds = {size: tau[size] / measured.ms for size, measured in times.items()}
    best = max(speeds, key=lambda size: speeds[size])

    def is_tie(size: Size) -> bool:
        error = math.hypot(*(times[each].error_ms / times[each].ms for each in (size, best)))
        return speeds[size] >= speeds[best] * (1 - max(TIE, error))

    return min(filter(is_tie, speeds), key=lambda size: shapes[size])


def error_of_median(turns: Sequence[float]) -> float:
    """The standard error of the median of these numbers, were their noise normal."""
    median = statistics.median(turns)
    deviation = statistics.median(abs(ms - median) for ms in turns)
    return _STEP_OF_MEDIAN * deviation / math.sqrt(len(turns))
