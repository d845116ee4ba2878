"""A dynamic tree's size is chosen by what was counted, and by times of the few that promise most."""

import pytest

from euryale.decoding.tree.tree import DynamicTree
from euryale.evaluation.choose_dynamic import choose_dynamic, dynamic_finalists, price, sizes_in_reach
from euryale.evaluation.choose_size import Measured, Size

TAU: dict[Size, float] = {(1, None): 1.0, (4, None): 1.8, (4, 2): 1.75, (8, None): 2.0, (64, None): 2.6}
TIMES: dict[Size, Measured] = {
    (1, None): Measured(10.0, 0.1), (4, None): Measured(12.0, 0.1), (4, 2): Measured(11.0, 0.1),
    (8, None): Measured(14.0, 0.1), (64, None): Measured(40.0, 0.1),
}  # fmt: skip
GAINS = {DynamicTree(4, 2): 1.9, DynamicTree(4, 3): 1.95, DynamicTree(8, 3): 2.2, DynamicTree(8, 4): 2.25}


def test_sizes_are_counted_up_to_the_largest_that_is_nearly_as_fast_as_the_fastest() -> None:
    assert sizes_in_reach(TAU, TIMES) == [1, 4, 8], "64 nodes write half as fast"
    assert sizes_in_reach(TAU, TIMES | {(64, None): Measured(18.0, 0.1)}) == [1, 4, 8, 64]
    assert sizes_in_reach({(1, None): 1.0}, {(1, None): Measured(1.0, 0.0)}) == [1]


def test_a_dynamic_tree_is_priced_as_the_fixed_one_of_as_many_nodes_and_levels() -> None:
    assert [price(tree, TIMES) for tree in GAINS] == [11.0, 12.0, 14.0, 14.0]
    assert dynamic_finalists(GAINS, TIMES) == [DynamicTree(4, 2), DynamicTree(4, 3), DynamicTree(8, 4)]
    assert dynamic_finalists({}, TIMES) == []


def test_the_best_is_the_fastest_of_those_that_were_timed_and_all_are_priced_with_what_it_took_more() -> None:
    """The machine was twice as slow when they were timed, and a tenth of their steps is what arranging takes."""
    again = {size: Measured(2 * TIMES[size].ms, 0.1) for size in ((1, None), (4, None))}
    finalists = dynamic_finalists(GAINS, TIMES)
    turns = {tree: [2 * 1.1 * price(tree, TIMES)] * 3 for tree in finalists}
    found = choose_dynamic(GAINS, TIMES, again, turns)
    assert found.best == DynamicTree(4, 2)
    assert found.step_ms == {tree: pytest.approx(1.1 * price(tree, TIMES)) for tree in GAINS}
    assert [entry["tau"] for entry in found.as_entry()] == list(GAINS.values())
    turns[DynamicTree(8, 4)] = [26.0] * 3
    assert choose_dynamic(GAINS, TIMES, again, turns).best == DynamicTree(8, 4)
