"""Steps are timed in turns, from one context, over one set of matrices."""

from dataclasses import replace

import pytest
import torch
from calibration_cases import DESIGNS, SMALL
from kernel_bases import kernel_base
from random_models import random_base, random_heads

from euryale.base.base import Base
from euryale.decoding.decoder import Decoder
from euryale.decoding.drafters.head_matrices import HeadMatrices
from euryale.decoding.request import Request
from euryale.decoding.tree.calibration import Calibration
from euryale.decoding.tree.tree import Tree
from euryale.evaluation.choose_size import Size
from euryale.evaluation.config import CalibrateConfig
from euryale.evaluation.time_steps import time_steps
from euryale.heads.heads import Heads


@pytest.fixture(scope="module")
def base() -> Base:
    """float64, so that no two scores are close; a seed whose greedy answers do not loop soon."""
    return random_base(vocab_size=13, seed=11, dtype=torch.float64)


def test_steps_are_timed_in_turn_from_one_context(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    heads = random_heads(DESIGNS["hydra"], base)
    calibration = Calibration(0.0, 1, [[0], [0, 0], [1], [0, 0, 0], [2], [3], [4]], [0.1] * 7, 10)
    seen: list[tuple[int, int]] = []
    plain = Decoder.step

    def noted(self: Decoder) -> list[list[int]]:
        seen.append((self.drafter.num_nodes, self.cache.lengths[0]))
        return plain(self)

    monkeypatch.setattr(Decoder, "step", noted)
    trees: dict[Size, Tree] = {(n, None): calibration.tree_of(n) for n in (1, 2, 8)}
    found = time_steps(base, heads, trees, [4, 1, 7], replace(calibration, temperature=0.8), SMALL)
    assert list(found) == list(trees)
    assert all(len(turns) == SMALL.repeats and min(turns) > 0 for turns in found.values())
    expected = [(n, SMALL.context_tokens - 1) for _ in range(SMALL.repeats) for n in (1, 2, 8) for _ in range(4)]
    assert seen == expected


def test_steps_on_the_device_stay_within_the_slots_that_were_taken_for_them() -> None:
    """They go on from each other within a turn, and every turn starts from the context again."""
    base = kernel_base("llama", "torch", seed=11)
    heads = random_heads(DESIGNS["hydra"], base)
    calibration = Calibration(0.0, 1, [[0], [0, 0], [1], [0, 0, 0], [2], [3], [4]], [0.1] * 7, 10)
    trees: dict[Size, Tree] = {(n, None): calibration.tree_of(n) for n in (1, 4)}
    found = time_steps(base, heads, trees, [4, 1, 7], replace(calibration, temperature=0.8), replace(SMALL, repeats=30))
    assert all(len(turns) == 30 and min(turns) > 0 for turns in found.values())


def test_the_timing_context_ends_at_half_of_the_base_s(monkeypatch: pytest.MonkeyPatch) -> None:
    base = random_base(vocab_size=13, max_length=20)
    prompts: list[int] = []
    plain = Decoder.add

    def noted(self: Decoder, row: int, requests: list[Request]) -> None:
        prompts.append(len(requests[0].prompt))
        plain(self, row, requests)

    monkeypatch.setattr(Decoder, "add", noted)
    config = CalibrateConfig(repeats=1, context_tokens=1000)
    calibration = Calibration(0.0, 1, [[0]], [0.1], 10)
    trees: dict[Size, Tree] = {(n, None): calibration.tree_of(n) for n in (1, 2)}
    time_steps(base, random_heads(DESIGNS["hydra"], base), trees, [4], calibration, config)
    assert prompts == [10, 10]


def test_trees_of_all_sizes_share_one_set_of_matrices(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    """A set of its own for each tree was 17 GB for an 8B base."""
    heads = random_heads(DESIGNS["hydra"], base)
    calibration = Calibration(0.0, 1, [[0], [0, 0], [1], [0, 0, 0], [2], [3], [4]], [0.1] * 7, 10)
    sizes: list[Size] = [(n, None) for n in (1, 2, 3, 4, 5, 6, 7, 8)] + [(4, 1), (4, 2), (6, 1), (6, 2)]
    made: list[HeadMatrices] = []
    plain = HeadMatrices.__init__

    def noted(self: HeadMatrices, base: Base, heads: Heads) -> None:
        made.append(self)
        plain(self, base, heads)

    monkeypatch.setattr(HeadMatrices, "__init__", noted)
    trees = {size: calibration.tree_of(*size) for size in sizes}
    time_steps(base, heads, trees, [4, 1, 7], calibration, replace(SMALL, repeats=1))
    assert len(made) == 1
