"""Are the four ways asked for the same, and is what cannot be measured refused?"""

import pytest
from random_models import FULL, HEAD_DESIGNS, engine_of, five_tokens, random_heads

from euryale.decoding.calibrated import Calibration
from euryale.decoding.engine import Engine
from euryale.decoding.tree import Budget, chain
from euryale.errors import UserError
from euryale.serving.batching import WAYS, batch_table, bench_batches, ragged
from euryale.serving.benchmark import BenchSettings

PROMPTS = [[0, 3, 1, 2], [1, 2], [4], [2, 2, 0], [3]]


@pytest.mark.parametrize("row_budget", [None, 12, 1])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_all_ways_write_the_same_text_and_are_counted_alike(temperature: float, row_budget: int | None) -> None:
    settings = BenchSettings(repeats=2, max_new_tokens=9, temperature=temperature)
    result = bench_batches(engine_of(five_tokens()), PROMPTS, settings, 2, row_budget)
    assert result["identical"] == result["total"] == 8, "two groups of two prompts, twice; the fifth makes no group"
    assert {row["tokens"] for row in result["ways"].values()} == {36}
    assert all(low <= row["tokens_per_s"] <= high for row, (low, high) in _with_spread(result))
    taus = [row["tau"] for row in result["ways"].values()]
    assert taus[2] == taus[3] == 1.0 and (taus[1] == 1.0) == (row_budget == 1)
    assert (taus[0] == taus[1]) if row_budget in (None, 1) else (taus[0] <= taus[1])
    table = batch_table(result)
    assert all(way in table for way in WAYS) and "8 of 8 answers identical in all ways" in table
    assert "prompts of 1 to 4 tokens" in table


def _with_spread(result: dict) -> list[tuple[dict, list[float]]]:
    return [(result["ways"][way], result["spread"][way]) for way in WAYS]


def test_openings_that_are_equally_long_are_cut_to_unlike_lengths() -> None:
    assert ragged([[1, 2, 3, 4]] * 4) == [[1], [1, 2], [1, 2, 3], [1, 2, 3, 4]]
    assert ragged([[1]] * 3) == [[1]] * 3
    assert ragged([[1, 2], [3]]) == [[1, 2], [3]]


@pytest.mark.parametrize("batch", [1, 6])
def test_groups_that_cannot_be_are_refused(batch: int) -> None:
    with pytest.raises(UserError, match=f"batch={batch} was asked for, and there are 5 prompts"):
        bench_batches(engine_of(five_tokens()), PROMPTS, BenchSettings(), batch)


def test_rows_that_share_a_budget_have_smaller_trees() -> None:
    base = five_tokens()
    heads = random_heads(HEAD_DESIGNS[0], base)
    calibration = Calibration(0.0, 4, [[0], [1], [0, 0], [2]], [0.5, 0.3, 0.2, 0.1], 100)
    calibrated = Engine(base, heads, calibrations=[calibration], row_budget=8)
    assert calibrated.tree(0.0) == calibrated.tree(0.0, 2) == calibration.tree_of(4)
    assert calibrated.tree(0.0, 3) == calibration.tree_of(2) and calibrated.tree(0.0, 99).num_nodes == 1
    given = Engine(base, heads, "heads", FULL, row_budget=8)
    assert given.tree(0.0, 2) == FULL.first(4)
    assert Engine(base, heads, "heads", chain(3), row_budget=8).tree(0.0, 2) == chain(3)
    dynamic = Engine(base, heads, "heads", "dynamic", row_budget=8)
    assert dynamic.tree(0.0, 2) == Budget(4, heads.num_heads)
    with pytest.raises(UserError, match="row_budget=0"):
        Engine(base, heads, row_budget=0)


@pytest.mark.parametrize("drafter", ["heads", "lookup"])
@pytest.mark.parametrize("row_budget", [1, 3, 9, 40])
def test_a_budget_changes_no_text(drafter: str, row_budget: int) -> None:
    base = five_tokens()
    heads = random_heads(HEAD_DESIGNS[0], base) if drafter == "heads" else None
    tree = FULL if drafter == "heads" else "dynamic"
    found = Engine(base, heads, drafter, tree, row_budget=row_budget).generate(PROMPTS, 12, 0.8, seed=range(5))
    plain = Engine(base, drafter="none").generate(PROMPTS, 12, 0.8, seed=range(5))
    assert [g.ids for g in found] == [g.ids for g in plain]
