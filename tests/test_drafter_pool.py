"""Every temperature and number of rows gets its drafter, over one set of matrices and within bounds."""

import copy
import logging
import pickle
from collections.abc import Callable

import pytest
import torch
from random_models import EAGLE_DESIGNS, HEAD_DESIGNS, random_base, random_heads

from euryale.base.base import Base
from euryale.decoding.config import TreeConfig
from euryale.decoding.drafters import build, head_matrices
from euryale.decoding.drafters.eagle import EagleDrafter
from euryale.decoding.drafters.heads import HeadsDrafter
from euryale.decoding.engine import Engine
from euryale.decoding.tree.calibration import Calibration
from euryale.decoding.tree.tree import chain, medusa63
from euryale.heads.config import HeadsConfig

PATHS = [[0], [1], [0, 0], [2], [0, 1]]


def calibrations() -> list[Calibration]:
    shares, tau, step_ms = [0.5, 0.2, 0.2, 0.1, 0.1], {"1": 1.0, "3": 1.7, "6": 2.1}, {"1": 1.0, "3": 1.2, "6": 1.7}
    return [Calibration(t / 10, 2 + t % 4, PATHS, shares, 100, tau, step_ms) for t in range(12)]


@pytest.mark.parametrize("design", [HEAD_DESIGNS[0], EAGLE_DESIGNS[0]], ids=["hydra", "eagle"])
@pytest.mark.parametrize("name", ["calibrated", "dynamic"])
def test_all_drafters_read_one_set_of_matrices_and_few_are_kept(
    design: HeadsConfig, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = random_base("llama", 9)
    made: list[object] = []
    plain = build.build_matrices

    def noted(base: Base, heads: object) -> object:
        made.append(plain(base, heads))  # type: ignore[arg-type]
        return made[-1]

    monkeypatch.setattr("euryale.decoding.drafter_pool.build_matrices", noted)
    engine = Engine(base, random_heads(design, base), "heads", TreeConfig(name), calibrations(), row_budget=24)
    for row_budget in (24, None):
        engine.row_budget = row_budget
        trees = set()
        for num_rows in (1, 2, 4, 8):
            for calibration in engine.calibrations:
                drafter = engine._pool.drafter(calibration.temperature, engine._most_nodes(num_rows))
                assert isinstance(drafter, (HeadsDrafter, EagleDrafter)) and drafter._matrices is made[0]
                trees.add(engine.tree(calibration.temperature, num_rows))
        assert len(engine._pool._drafters) <= 8
        assert row_budget is None or len(trees) > 3
    assert len(made) == 1


def test_a_drafter_that_is_asked_for_again_is_the_same_while_it_is_kept() -> None:
    base = random_base("llama", 9)
    engine = Engine(base, random_heads(HEAD_DESIGNS[0], base), "heads", "calibrated", calibrations())
    first = engine._pool.drafter(0.0)
    for calibration in engine.calibrations[1:8]:
        engine._pool.drafter(calibration.temperature)
        assert engine._pool.drafter(0.0) is first


def test_shallow_trees_share_the_matrices_of_deep_ones_and_draft_what_they_would_with_their_own() -> None:
    base = random_base("llama", 23, dtype=torch.float64)
    heads = random_heads(HEAD_DESIGNS[0], base)
    matrices = build.build_matrices(base, heads)
    prompts = [[1, 2, 3], [4, 4]]
    for depth in (4, 1, 2):
        tree = medusa63().pruned(depth, 9)
        shared = build.build_drafter("heads", base, heads, tree, matrices=matrices)
        engine = Engine(base, heads, "heads", tree)
        expected = engine.generate(prompts, 12)
        monkey = engine._pool.drafter(0.0)
        assert isinstance(shared, HeadsDrafter) and isinstance(monkey, HeadsDrafter)
        monkey._matrices = shared._matrices
        found = engine.generate(prompts, 12)
        assert [(g.ids, g.accepted) for g in found] == [(g.ids, g.accepted) for g in expected]


def test_every_matrix_that_is_laid_out_is_read_by_a_draft(monkeypatch: pytest.MonkeyPatch) -> None:
    unread: dict[int, object] = {}
    plain = head_matrices.packed

    class Noted:
        def __init__(self, *how: object) -> None:
            self._product = plain(*how)
            unread[id(self)] = self

        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            unread.pop(id(self), None)
            return self._product(x)

    monkeypatch.setattr("euryale.decoding.drafters.head_matrices.packed", Noted)
    base = random_base("llama", 23, dtype=torch.float64)
    for design in HEAD_DESIGNS:
        Engine(base, random_heads(design, base), "heads", "chain").generate([[1, 2, 1, 2]], 6)
        assert not unread, design


@pytest.mark.parametrize(
    ("drafter", "tree", "calibrated", "ran"),
    [
        ("heads", "calibrated", True, "calibrated"),
        ("heads", None, False, "chain"),
        ("heads", "calibrated", False, "chain"),
        ("lookup", None, False, "dynamic"),
        ("heads", "dynamic", False, "dynamic"),
        ("heads", medusa63(), False, "given"),
        ("none", None, False, "calibrated"),
    ],
)
def test_the_name_of_the_tree_is_that_of_what_runs_and_another_than_asked_is_told_once(
    drafter: str, tree: object, calibrated: bool, ran: str, caplog: pytest.LogCaptureFixture
) -> None:
    base = random_base("llama", 23)
    heads = random_heads(HEAD_DESIGNS[0], base)
    with caplog.at_level(logging.INFO, "euryale"):
        engine = Engine(base, heads, drafter, tree, calibrations() if calibrated else [])  # type: ignore[arg-type]
        engine.generate([[1, 2]], 4)
    assert engine.tree_name == ran
    told = [record.message for record in caplog.records if "calibrated" in record.message]
    assert len(told) == (ran in ("chain", "dynamic") and tree != "dynamic")
    assert all(f"tree={ran}" in message for message in told)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda engine: pickle.loads(pickle.dumps(engine))])
def test_an_engine_that_has_decoded_can_be_copied_and_pickled(copied: Callable[[Engine], Engine]) -> None:
    """Where its base is read by compiled products, addresses stay behind."""
    base = random_base("llama", 9)
    engine = Engine(base, random_heads(HEAD_DESIGNS[0], base), tree=chain(3))
    [expected] = engine.generate([[1, 2]], 12)
    other = copied(engine)
    assert other.base.model is not base.model
    [found] = other.generate([[1, 2]], 12)
    assert (found.ids, found.accepted, found.is_exact) == (expected.ids, expected.accepted, expected.is_exact)
