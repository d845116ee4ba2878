"""Known answers are written with one tree and with nodes arranged anew, and calibration chose the faster."""

import statistics
from dataclasses import replace

import pytest
import torch
from calibration_cases import DESIGNS, MAX_RANK, PROMPTS, written
from random_models import random_base, random_heads

from euryale.base.base import Base
from euryale.decoding.config import TreeConfig
from euryale.decoding.decoder import Decoder
from euryale.decoding.engine import Engine
from euryale.decoding.tree.calibration import Calibration
from euryale.decoding.tree.tree import DynamicTree
from euryale.evaluation import time_arrangements as module
from euryale.evaluation.rank_vectors import Text, frequent_paths, rank_vectors
from euryale.evaluation.time_arrangements import Arrangements, Gains, time_arrangements, tried
from euryale.heads.heads import Heads

TEMPERATURES = [0.0, 0.9]


@pytest.fixture(scope="module")
def base() -> Base:
    return random_base(vocab_size=13, seed=11, dtype=torch.float64)


def counted(base: Base, heads: Heads, temperature: float) -> tuple[Calibration, list[Text]]:
    texts = [written(base, o.ids, temperature, seed, new_tokens=30) for seed, o in enumerate(PROMPTS)]
    ranks = torch.cat([rank_vectors(base, heads, text, temperature, MAX_RANK) for text in texts])
    paths, probabilities = frequent_paths(ranks, MAX_RANK, 8)
    return Calibration(temperature, 5, paths, probabilities, len(ranks)), texts


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_both_ways_take_the_steps_that_decoding_takes(
    base: Base, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In turns of four, until one of them has written the answer; the first text is written once more before."""
    heads = random_heads(DESIGNS["hydra"], base)
    calibration, texts = counted(base, heads, temperature)
    tree = DynamicTree(7, 2)
    gained: dict[int, list[int]] = {5: [], 7: []}  # by nodes
    plain = Decoder.step

    def noted(self: Decoder) -> list[list[int]]:
        [tokens] = plain(self)
        gained[self.drafter.num_nodes].append(len(tokens))
        return [tokens]

    monkeypatch.setattr(Decoder, "step", noted)
    found = time_arrangements(base, heads, calibration, tree, Gains(1.2, 1.3), texts)
    monkeypatch.undo()
    assert (found.tree, found.tau, len(found.turns)) == (tree, (1.2, 1.3), len(texts))
    assert all(ratio > 0 for turns in found.turns for ratio in turns)
    for text, turns in zip([texts[0], *texts], [found.turns[0], *found.turns], strict=True):
        accepted = []
        for way in (calibration.tree(), TreeConfig("dynamic", 7, 2)):
            engine = Engine(base, heads, tree=way, calibrations=[calibration])
            [answer] = engine.generate([text.ids[: text.num_prompt]], 40, temperature=temperature, seed=text.seed)
            accepted.append(answer.accepted)
        steps, num_turns = in_turns(accepted, len(text.ids) - text.num_prompt)
        assert len(turns) == num_turns
        for of_way, expected in zip(gained.values(), steps, strict=True):
            assert of_way[: len(expected)] == expected
            del of_way[: len(expected)]
    assert gained == {5: [], 7: []}


def in_turns(accepted: list[list[int]], wanted: int) -> tuple[list[list[int]], int]:
    """The steps that are taken of those that either way would take, and the number of turns."""
    taken: list[list[int]] = [[], []]
    num_turns = 0
    while max(map(sum, taken)) < wanted:
        num_turns += 1
        for mine, all_steps in zip(taken, accepted, strict=True):
            for _ in range(4):
                if sum(mine) < wanted:
                    mine.append(all_steps[len(mine)])
    return taken, num_turns


def test_a_dynamic_tree_can_be_tried_where_no_fixed_one_pays(base: Base) -> None:
    heads = random_heads(DESIGNS["hydra"], base)
    calibration, texts = counted(base, heads, 0.0)
    alone = replace(calibration, num_nodes=1)
    found = time_arrangements(base, heads, alone, DynamicTree(4, 2), Gains(1.0, 1.2), texts[:1])
    assert len(found.turns) == 1 and found.as_entry()["dynamic_tau"] == 1.2


def test_texts_that_are_tried_have_an_answer_and_are_of_all_kinds() -> None:
    answered, empty = Text([4, 1, 2], 2, 0), Text([4, 1], 2, 0)
    assert tried([]) == tried([empty]) == []
    assert tried([empty, answered, empty, answered]) == [answered] * 2
    many = [Text([4, 1, 2], 2, seed) for seed in range(48)]
    assert tried(many) == many[::4]


def arrangements(turns: list[list[float]], tau: Gains) -> Arrangements:
    return Arrangements(DynamicTree(6, 3), tau, turns)


@pytest.mark.parametrize(
    "turns, is_dynamic, is_clear",
    [
        ([[1.1, 1.12], [1.08, 1.09], [1.11, 1.1]], True, False),  # too few texts
        ([[1.1, 1.12], [1.08, 1.09], [1.11, 1.1], [1.13, 1.12]], True, True),
        ([[1.0, 1.01], [1.0], [1.01], [1.0, 1.0]], False, True),  # less than it has to be
        ([[1.3, 0.9], [1.03], [1.2, 0.8], [1.1]], True, False),
        ([[0.9, 0.91], [0.89, 0.9], [0.92, 5.0], [0.9]], False, True),  # one moment of a busy machine
    ],
)
def test_the_median_turn_decides_once_it_is_far_enough_from_what_dynamic_trees_have_to_gain(
    turns: list[list[float]], is_dynamic: bool, is_clear: bool
) -> None:
    found = arrangements(turns, Gains(2.0, 2.0))
    assert (found.is_dynamic_worth_it, found.is_clear) == (is_dynamic, is_clear)
    entry = found.as_entry()
    assert (entry["dynamic_nodes"], entry["dynamic_depth"]) == ((6, 3) if is_dynamic else (None, None))
    assert entry["dynamic_speedup"] == statistics.median(sum(turns, []))


def test_tokens_of_all_texts_and_times_of_some_make_the_speedup() -> None:
    """The dynamic tree's steps are a tenth longer and gain a quarter more."""
    found = arrangements([[1 / 1.1]] * 5, Gains(2.0, 2.5))
    assert found.speedups() == pytest.approx([1.25 / 1.1] * 5)
    entry = found.as_entry()
    assert (entry["fixed_tau"], entry["dynamic_tau"]) == (2.0, 2.5)


def test_no_more_texts_are_written_than_it_takes(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    heads = random_heads(DESIGNS["hydra"], base)
    calibration, texts = counted(base, heads, 0.0)
    monkeypatch.setattr(module, "_write", lambda *_: [2.0, 2.1])
    found = time_arrangements(base, heads, calibration, DynamicTree(7, 2), Gains(2.0, 2.0), texts * 4)
    assert found.turns == [[2.0, 2.1]] * module._FEWEST


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_an_engine_takes_what_was_chosen_and_a_named_size_as_one_tree(base: Base, temperature: float) -> None:
    heads = random_heads(DESIGNS["hydra"], base)
    calibration, _ = counted(base, heads, temperature)
    dynamic = replace(calibration, dynamic_depth=2)
    chosen = Engine(base, heads, calibrations=[dynamic])
    assert chosen.tree(temperature) == DynamicTree(5, 2)
    assert chosen.tree_name == "calibrated" and chosen.num_nodes(temperature) == 5
    more = Engine(base, heads, calibrations=[replace(dynamic, dynamic_nodes=8)])
    assert more.tree(temperature) == DynamicTree(8, 2)
    named = Engine(base, heads, tree=TreeConfig("calibrated", num_nodes=4), calibrations=[dynamic])
    assert named.tree(temperature) == calibration.tree_of(4)
    assert Engine(base, heads, calibrations=[calibration]).tree(temperature) == calibration.tree()
    assert isinstance(replace(dynamic, num_nodes=1).chosen(), type(calibration.tree())), "a root alone"
    prompts = [[4, 1, 7], [2, 2]]
    plain = Engine(base, drafter="none").generate(prompts, 20, temperature=temperature, seed=[3, 4])
    drafted = chosen.generate(prompts, 20, temperature=temperature, seed=[3, 4])
    assert [answer.ids for answer in drafted] == [answer.ids for answer in plain]
