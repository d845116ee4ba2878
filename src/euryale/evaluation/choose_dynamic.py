"""Choice of a dynamic tree's size and depth.

Its tau is counted for all sizes (count_dynamic.py). Its step verifies as many nodes as that of a fixed tree and drafts
a little longer: so the times of fixed trees tell which few dynamic ones promise most, and only those are timed.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from euryale.decoding.tree.tree import DynamicTree
from euryale.evaluation.choose_size import Measured, Size, fit_times

FINALISTS = 3  # dynamic trees that are timed
_IN_REACH = 0.85  # of the fastest fixed tree's speed: slower ones are too large, for arranging gained up to a tenth


class DynamicSizes(NamedTuple):
    """The dynamic trees that were counted at one temperature."""

    tau: dict[DynamicTree, float]
    step_ms: dict[DynamicTree, float]  # beside those of fixed trees: of one as large, and what arranging adds
    best: DynamicTree

    def as_entry(self) -> list[dict[str, Any]]:
        """What tree.json keeps of them."""
        return [
            {"num_nodes": tree.num_nodes, "max_depth": tree.max_depth, "tau": tau, "step_ms": self.step_ms[tree]}
            for tree, tau in self.tau.items()
        ]


def sizes_in_reach(tau: Mapping[Size, float], times: Mapping[Size, Measured]) -> list[int]:
    """The numbers of nodes to count: all up to the largest of which a fixed tree is nearly as fast as the fastest."""
    speeds = {size: tau[size] / times[size].ms for size in times}
    least = _IN_REACH * max(speeds.values())
    largest = max(nodes for (nodes, _), speed in speeds.items() if speed >= least)
    return sorted({nodes for nodes, _ in times if nodes <= largest})


def price(tree: DynamicTree, times: Mapping[Size, Measured]) -> float:
    """Milliseconds of a step over a fixed tree of as many nodes and levels, or of full depth where none was timed."""
    size = (tree.num_nodes, tree.max_depth)
    return times[size if size in times else (tree.num_nodes, None)].ms


def dynamic_finalists(tau: Mapping[DynamicTree, float], times: Mapping[Size, Measured]) -> list[DynamicTree]:
    """Those that promise the most tokens a millisecond."""
    return sorted(tau, key=lambda tree: -tau[tree] / price(tree, times))[:FINALISTS]


def choose_dynamic(
    tau: dict[DynamicTree, float],
    times: Mapping[Size, Measured],
    again: Mapping[Size, Measured],
    turns_ms: Mapping[DynamicTree, Sequence[float]],
) -> DynamicSizes:
    """The best of those that were timed, in turns with fixed trees (`again`); `times` are first times of the latter.

    What was timed later is brought to the pace of the first times. What the timed ones took more than fixed trees is
    added to the price of all.
    """
    shapes = {tree: (tree.num_nodes, tree.max_depth) for tree in turns_ms}
    timed = fit_times(turns_ms, shapes)
    pace = statistics.median(times[size].ms / again[size].ms for size in again)
    more = statistics.median(pace * measured.ms / price(tree, times) for tree, measured in timed.items())
    best = max(timed, key=lambda tree: tau[tree] / timed[tree].ms)
    return DynamicSizes(tau, {tree: more * price(tree, times) for tree in tau}, best)
