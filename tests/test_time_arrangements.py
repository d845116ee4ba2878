"""Known answers are written with one tree and with as many nodes arranged anew; calibration chose the faster."""

from dataclasses import replace

import pytest
import torch
from calibration_cases import DESIGNS, MAX_RANK, PROMPTS, written
from random_models import random_base, random_heads

from euryale.base.base import Base
from euryale.decoding.config import TreeConfig
from euryale.decoding.engine import Engine
from euryale.decoding.tree.calibration import Calibration
from euryale.decoding.tree.tree import DynamicTree
from euryale.evaluation.rank_vectors import Text, frequent_paths, rank_vectors
from euryale.evaluation.time_arrangements import Arrangements, Written, time_arrangements, tried
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
def test_both_ways_take_the_steps_that_decoding_takes(base: Base, temperature: float) -> None:
    heads = random_heads(DESIGNS["hydra"], base)
    calibration, texts = counted(base, heads, temperature)
    found = time_arrangements(base, heads, calibration, texts)
    assert found is not None and len(found.fixed) == len(found.dynamic) == len(texts)
    assert found.depth == heads.num_heads
    for each, way in ((found.fixed, calibration.tree()), (found.dynamic, TreeConfig("dynamic", 5, heads.num_heads))):
        engine = Engine(base, heads, tree=way, calibrations=[calibration])
        for one, text in zip(each, texts, strict=True):
            [answer] = engine.generate([text.ids[: text.num_prompt]], 40, temperature=temperature, seed=text.seed)
            wanted, num_steps, num_tokens = len(text.ids) - text.num_prompt, 0, 0
            while num_tokens < wanted:
                num_tokens += answer.accepted[num_steps]
                num_steps += 1
            assert (one.num_steps, one.num_tokens) == (num_steps, num_tokens) and one.seconds > 0


def test_nothing_is_timed_where_nothing_is_drafted_or_written(base: Base) -> None:
    heads = random_heads(DESIGNS["hydra"], base)
    calibration, texts = counted(base, heads, 0.0)
    assert time_arrangements(base, heads, replace(calibration, num_nodes=1), texts) is None
    assert time_arrangements(base, heads, calibration, []) is None


def test_at_most_half_of_the_texts_are_tried_and_those_have_an_answer() -> None:
    answered, empty = Text([4, 1, 2], 2, 0), Text([4, 1], 2, 0)
    assert tried([]) == tried([empty]) == []
    assert tried([answered] * 4) == [0, 2]
    assert tried([empty, answered, empty, answered, answered]) == [1, 4]
    assert tried([answered] * 64) == list(range(0, 64, 8))


@pytest.mark.parametrize(
    "fixed, dynamic, is_dynamic",
    [
        ([1.0, 1.0, 1.0], [0.9, 0.9, 1.0], True),
        ([1.0, 1.0, 1.0], [0.99, 0.99, 0.99], False),  # less than noise
        ([1.0, 1.0, 1.0], [1.1, 1.1, 0.2], False),  # one moment of a busy machine
        ([1.0, 1.0, 1.0], [1.2, 1.1, 1.3], False),
    ],
)
def test_a_dynamic_tree_is_chosen_where_it_is_faster_in_sum_and_in_most_texts(
    fixed: list[float], dynamic: list[float], is_dynamic: bool
) -> None:
    found = Arrangements(3, [Written(s, 10, 17) for s in fixed], [Written(s, 10, 18) for s in dynamic])
    entry = found.as_entry()
    assert entry["dynamic_depth"] == (3 if is_dynamic else None)
    assert (entry["fixed_tau"], entry["dynamic_tau"]) == (1.7, 1.8)
    assert entry["dynamic_speedup"] == pytest.approx(sum(fixed) / sum(dynamic))


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_an_engine_takes_what_was_chosen_and_a_named_size_as_one_tree(base: Base, temperature: float) -> None:
    heads = random_heads(DESIGNS["hydra"], base)
    calibration, _ = counted(base, heads, temperature)
    dynamic = replace(calibration, dynamic_depth=2)
    chosen = Engine(base, heads, calibrations=[dynamic])
    assert chosen.tree(temperature) == DynamicTree(5, 2)
    assert chosen.tree_name == "calibrated" and chosen.num_nodes(temperature) == 5
    named = Engine(base, heads, tree=TreeConfig("calibrated", num_nodes=4), calibrations=[dynamic])
    assert named.tree(temperature) == calibration.tree_of(4)
    assert Engine(base, heads, calibrations=[calibration]).tree(temperature) == calibration.tree()
    assert isinstance(replace(dynamic, num_nodes=1).chosen(), type(calibration.tree())), "a root alone"
    prompts = [[4, 1, 7], [2, 2]]
    plain = Engine(base, drafter="none").generate(prompts, 20, temperature=temperature, seed=[3, 4])
    drafted = chosen.generate(prompts, 20, temperature=temperature, seed=[3, 4])
    assert [answer.ids for answer in drafted] == [answer.ids for answer in plain]
