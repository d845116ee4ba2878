"""All four ways are asked for the same, and what cannot be measured is refused."""

import json
from pathlib import Path

import pytest
from random_models import FULL, HEAD_DESIGNS, engine_of, five_tokens, random_heads

from euryale.decoding.engine import Engine
from euryale.decoding.sampling import Sampling
from euryale.decoding.tree.calibration import Calibration
from euryale.decoding.tree.tree import DynamicTree, chain
from euryale.errors import UserError
from euryale.evaluation.bench import bench
from euryale.evaluation.bench_batches import WAYS, bench_batches, ragged
from euryale.evaluation.config import BenchSettings
from euryale.report.bench_tables import batch_table
from euryale.report.plot_sweep import sweep_plot
from euryale.report.sweep_results import read_sweep, sweep_table

PROMPTS = [[0, 3, 1, 2], [1, 2], [4], [2, 2, 0], [3]]


@pytest.mark.parametrize("row_budget", [None, 12, 1])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_all_ways_write_the_same_text_and_are_counted_alike(temperature: float, row_budget: int | None) -> None:
    settings = BenchSettings(repeats=2, max_new_tokens=9, sampling=Sampling(temperature))
    engine = engine_of(five_tokens())
    engine.row_budget = row_budget
    result = bench_batches(engine, PROMPTS, settings, 2)
    assert result["identical"] == result["total"] == 8, "two groups of two prompts, twice; the fifth makes no group"
    assert {row["tokens"] for row in result["ways"].values()} == {36}
    assert all(low <= row["tokens_per_s"] <= high for row, (low, high) in _with_spread(result))
    taus = [row["tau"] for row in result["ways"].values()]
    assert taus[2] == taus[3] == 1.0 and (taus[1] == 1.0) == (row_budget == 1)
    assert (taus[0] == taus[1]) if row_budget in (None, 1) else (taus[0] <= taus[1])
    table = batch_table(result)
    assert all(way in table for way in WAYS) and "8 of 8 answers identical in all ways" in table
    assert "prompts of 1 to 4 tokens" in table
    for name, row in result["contenders"].items():
        assert row == result["ways"][f"{name}, together"] and row["peak_host_bytes"] > 0
        # Steps of both rows at once: one pass takes as long as its parts, and what they leave out.
        assert 0 < sum(row["split_ms"].values()) <= row["ms_per_step"]
    assert result["contenders"]["ar"]["mean_nodes"] == 1 and len(result["tau_by_depth"]) == result["max_depth"]


def _with_spread(result: dict) -> list[tuple[dict, list[float]]]:
    return [(result["ways"][way], result["spread"][way]) for way in WAYS]


def test_openings_that_are_equally_long_are_cut_to_unlike_lengths() -> None:
    assert ragged([[1, 2, 3, 4]] * 4) == [[1], [1, 2], [1, 2, 3], [1, 2, 3, 4]]
    assert ragged([[1]] * 3) == [[1]] * 3
    assert ragged([[1, 2], [3]]) == [[1, 2], [3]]


@pytest.mark.parametrize("batch", [1, 6])
def test_groups_that_cannot_be_are_refused(batch: int) -> None:
    with pytest.raises(UserError, match=f"batch must be from 2 to the number of prompts, 5; got {batch}"):
        bench_batches(engine_of(five_tokens()), PROMPTS, BenchSettings(), batch)


def test_more_than_are_answered_at_once_are_refused() -> None:
    with pytest.raises(UserError, match="batch must be at most 64, the answers written at once; got 65"):
        bench_batches(engine_of(five_tokens()), PROMPTS * 13, BenchSettings(), 65)


def test_a_sweep_over_batch_is_one_over_speed_tau_and_memory(tmp_path: Path) -> None:
    engine, settings = engine_of(five_tokens()), BenchSettings(("euryale", "ar"), repeats=1, max_new_tokens=6)
    rows = [bench(engine, PROMPTS[:4], settings)] + [bench_batches(engine, PROMPTS, settings, n) for n in (2, 4)]
    lines = [json.dumps({"swept": {"batch": str(n)}} | row) for n, row in zip((1, 2, 4), rows, strict=True)]
    (tmp_path / "r.jsonl").write_text("\n".join(lines))
    sweep = read_sweep(tmp_path / "r.jsonl")
    assert sweep.by == "batch" and [point.value for point in sweep.points] == [1, 2, 4]
    assert all(point.own["peak_host_bytes"] and point.own["split_ms"] for point in sweep.points)
    table = sweep_table(sweep).splitlines()
    assert len(table) == 5 and all("-" not in line.replace(" - ", "", 1) for line in table[2:]), "only HF is missing"
    assert sweep_plot(sweep).startswith(b"\x89PNG")


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
    assert dynamic.tree(0.0, 2) == DynamicTree(4, heads.num_heads)
    with pytest.raises(UserError, match="row_budget must be at least 1; got 0"):
        Engine(base, heads, row_budget=0)


@pytest.mark.parametrize("drafter", ["heads", "lookup"])
@pytest.mark.parametrize("row_budget", [1, 3, 9, 40])
def test_a_budget_changes_no_text(drafter: str, row_budget: int) -> None:
    base = five_tokens()
    heads = random_heads(HEAD_DESIGNS[0], base) if drafter == "heads" else None
    tree = FULL if drafter == "heads" else "dynamic"
    found = Engine(base, heads, drafter, tree, row_budget=row_budget).generate(
        PROMPTS, 12, temperature=0.8, seed=range(5)
    )
    plain = Engine(base, drafter="none").generate(PROMPTS, 12, temperature=0.8, seed=range(5))
    assert [g.ids for g in found] == [g.ids for g in plain]
