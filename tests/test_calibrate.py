"""Calibration counts what steps really accept, finds the best tree of every size, and chooses the fastest."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from calibration_cases import DESIGNS, MAX_RANK, PROMPTS, SMALL, written
from plain_heads import plain_heads
from random_models import random_base, random_heads

from euryale.base.base import Base
from euryale.decoding.engine import Engine
from euryale.decoding.tree.calibration import TREE_FILE, Calibration, read_calibrations
from euryale.decoding.tree.tree import Tree, chain
from euryale.errors import UserError
from euryale.evaluation import calibrate as module
from euryale.evaluation import time_arrangements
from euryale.evaluation.calibrate import calibrate
from euryale.evaluation.choose_size import Size
from euryale.evaluation.config import CalibrateConfig
from euryale.evaluation.rank_vectors import frequent_paths, rank_vectors
from euryale.evaluation.simulate_tau import reached, replay, walked
from euryale.heads.heads import Heads
from euryale.system.files import read_json, write_json


@pytest.fixture(scope="module")
def base() -> Base:
    """float64, so that no two scores are close; a seed whose greedy answers do not loop soon."""
    return random_base(vocab_size=13, seed=11, dtype=torch.float64)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_replayed_text_takes_the_steps_that_decoding_takes(base: Base, temperature: float) -> None:
    """Not the mean over positions: a step skips the easy ones that it has accepted."""
    heads = random_heads(DESIGNS["hydra"], base)
    texts = [written(base, o.ids, temperature, seed, new_tokens=40) for seed, o in enumerate(PROMPTS)]
    ranks = [rank_vectors(base, heads, text, temperature, MAX_RANK) for text in texts]
    paths, probabilities = frequent_paths(torch.cat(ranks), MAX_RANK, 8)
    calibration = Calibration(temperature, 1, paths, probabilities, sum(map(len, ranks)))
    tree = calibration.tree_of(9)
    gained = []
    for text, ranks_MK in zip(texts, ranks, strict=True):
        engine = Engine(base, heads, tree=tree)
        [answer] = engine.generate([text.ids[: text.num_prompt]], 40, temperature=temperature, seed=text.seed)
        position = 0
        for tokens in answer.accepted:  # as long as the text's ranks are known
            if position < len(ranks_MK):
                gained.append(tokens)
            position += tokens
    assert replay(ranks, [tree]) == [pytest.approx(sum(gained) / len(gained))]
    assert replay([torch.tensor([[0, 1], [9, 9], [0, 0]])], [chain(1), chain(2)]) == [2.0, 2.5]


@pytest.mark.parametrize("step_ms, fastest", [([1.0] * 4, 8), ([1.0, 5, 5, 5], 1), ([1.0, 1.001, 9, 9], 2)])
def test_the_chosen_size_gives_most_tokens_a_second(
    base: Base,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    step_ms: list[float],
    fastest: int,
) -> None:
    heads = random_heads(DESIGNS["hydra"], base)
    given = dict(zip("1248", step_ms, strict=True))

    def by_nodes(base: Base, heads: Heads, trees: dict[Size, Tree], *rest: object) -> dict[Size, list[float]]:
        return {size: [given[str(tree.num_nodes)]] for size, tree in trees.items()}

    monkeypatch.setattr(module, "time_steps", by_nodes)
    for entry in calibrate(base, heads, PROMPTS, SMALL)["calibrations"]:
        speeds = {n: entry["tau"][n] / given[n] for n in given}
        assert entry["step_ms"] == pytest.approx(given) and (entry["num_nodes"], entry["max_depth"]) == (fastest, None)
        assert speeds[str(fastest)] == max(speeds.values())
    told = [record.getMessage() for record in caplog.records if "no tree pays" in record.getMessage()]
    assert len(told) == (len(SMALL.temperatures) if fastest == 1 else 0)
    assert all("5.00 ms, and a plain step takes 1.00 ms" in message for message in told)


def test_a_shallower_tree_is_chosen_where_levels_cost_more_than_they_bring(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = random_heads(DESIGNS["hydra"], base)
    seen: dict[Size, Tree] = {}

    def by_depth(base: Base, heads: Heads, trees: dict[Size, Tree], *rest: object) -> dict[Size, list[float]]:
        seen.update({size: tree for size, tree in trees.items() if size not in seen and isinstance(tree, Tree)})
        return {size: [1.0 + 9.0 * max(tree.max_depth - 1, 0)] for size, tree in trees.items()}

    monkeypatch.setattr(module, "time_steps", by_depth)
    config = replace(SMALL, node_counts=[1, 2, 4, 6, 30])
    entry = calibrate(base, heads, PROMPTS, config)["calibrations"][0]
    calibration = Calibration(**entry)
    assert calibration.max_depth == 1 and calibration.tree().max_depth == 1
    assert calibration.tree().num_nodes == calibration.num_nodes == max(n for n, depth in seen if depth == 1)
    for size, tree in seen.items():
        nodes = calibration.likeliest(*size)
        assert tree.num_nodes == size[0] == len(nodes) + 1
        assert all(size[1] is None or len(path) <= size[1] for path, _ in nodes)
        left_out = [p for path, p in zip(calibration.paths, calibration.probabilities, strict=True)
                    if list(path) not in [n for n, _ in nodes] and len(path) <= (size[1] or 99)]  # fmt: skip
        assert not nodes or not left_out or min(p for _, p in nodes) >= max(left_out)
    for tree in entry["shallow"]:
        nodes = calibration.likeliest(tree["num_nodes"], tree["max_depth"])
        assert 1 <= tree["tau"] <= 2 and len(nodes) == tree["num_nodes"] - 1
        assert tree["step_ms"] == 1.0 + 9.0 * (tree["max_depth"] - 1)


def test_what_is_written_reads_back_and_an_engine_uses_it(base: Base, tmp_path: Path) -> None:
    heads = random_heads(DESIGNS["hydra"], base)
    content = calibrate(base, heads, PROMPTS, SMALL)
    write_json(tmp_path / TREE_FILE, content)
    assert read_json(tmp_path / TREE_FILE) == content, "plain JSON types"
    found = read_calibrations(tmp_path)
    assert found == [Calibration(**entry) for entry in content["calibrations"]]
    assert [calibration.temperature for calibration in found] == [0.0, 0.8]
    assert (content["dtype"], content["threads"]) == ("float64", 1) and content["device"]
    for calibration in found:
        texts = [written(base, o.ids, calibration.temperature, 1 + i, 12) for i, o in enumerate(PROMPTS)]
        ranks_by_text = [rank_vectors(base, heads, text, calibration.temperature, 5) for text in texts]
        ranks = torch.cat(ranks_by_text)
        assert calibration.num_positions == len(ranks) and len(calibration.paths) <= 7
        for n, tau in calibration.tau.items():
            assert [tau] == replay(ranks_by_text, [calibration.tree_of(int(n))])
        assert set(calibration.tau) == set(calibration.step_ms) and min(calibration.step_ms.values()) > 0
        assert max(itertools.chain(*calibration.paths)) < 5
    engine = Engine(base, heads, calibrations=found)
    assert [engine.tree(c.temperature).num_nodes for c in found] == [c.chosen().num_nodes for c in found]
    [plain], [drafted] = (e.generate([[4, 1, 7]], 20) for e in (Engine(base, drafter="none"), engine))
    assert plain.ids == drafted.ids


def test_sizes_beyond_the_paths_that_were_seen_are_not_timed(base: Base) -> None:
    heads = random_heads(plain_heads("hydra", num_heads=1, vocab_share=1.0), base)
    config = CalibrateConfig(
        new_tokens=8, temperatures=[0.0], max_rank=2, node_counts=[1, 2, 3, 64], repeats=1, context_tokens=4
    )
    [entry] = calibrate(base, heads, PROMPTS, config)["calibrations"]
    assert max(map(int, entry["tau"])) <= len(entry["paths"]) + 1 <= 3


def test_answers_that_all_end_at_once_are_refused() -> None:
    base = random_base(vocab_size=13, eos=list(range(13)))
    with pytest.raises(UserError, match="answers of at least 3 tokens, and the base ended all 3 sooner"):
        calibrate(base, random_heads(DESIGNS["hydra"], base), PROMPTS, SMALL)
    heads = random_heads(plain_heads("hydra", num_heads=1, vocab_share=1.0), base)
    [entry, _] = calibrate(base, heads, PROMPTS, SMALL)["calibrations"]
    assert entry["num_positions"] == 3, "one head learns something from an answer of one token"


def test_no_prompts_are_refused(base: Base) -> None:
    with pytest.raises(UserError, match="calibration was given no prompts"):
        calibrate(base, random_heads(DESIGNS["hydra"], base), [], SMALL)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"node_counts": []}, "node_counts"),
        ({"node_counts": [0, 1]}, "node_counts"),
        ({"node_counts": [2]}, "1 .no tree. among them"),
        ({"repeats": 0}, "calibrate.repeats must be at least 1; got 0"),
        ({"max_rank": 0}, "calibrate.max_rank must be at least 1; got 0"),
        ({"context_tokens": 0}, "calibrate.context_tokens must be at least 1; got 0"),
        ({"temperatures": []}, "calibrate.temperatures must not be empty"),
        ({"temperatures": [float("nan")]}, "temperature must be a number; got nan"),
    ],
)
def test_impossible_settings_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        CalibrateConfig(**changes).check()


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_the_best_dynamic_tree_is_tried_against_the_best_fixed_one(
    base: Base, monkeypatch: pytest.MonkeyPatch, temperature: float
) -> None:
    """All steps take the same time, so tokens decide: those along texts that neither tree was fitted to."""
    heads = random_heads(DESIGNS["hydra"], base)
    monkeypatch.setattr(module, "time_steps", lambda b, h, trees, *_: {size: [1.0] for size in trees})
    monkeypatch.setattr(time_arrangements, "_write", lambda *_: [1.0])
    config = replace(SMALL, node_counts=[1, 2, 4, 12], temperatures=[temperature], new_tokens=30)
    [entry] = calibrate(base, heads, PROMPTS, config)["calibrations"]
    sizes = {(each["num_nodes"], each["max_depth"]): each["tau"] for each in entry["dynamic"]}
    assert set(sizes) == {(4, 2), (4, 3), (12, 2), (12, 3)}
    assert all(each["step_ms"] == 1.0 for each in entry["dynamic"])
    texts = [written(base, o.ids, temperature, 1 + i, 30) for i, o in enumerate(PROMPTS)]
    ranks = [rank_vectors(base, heads, text, temperature, config.max_rank) for text in texts]
    taken = []
    for place, others in enumerate(([1], [0, 2], [1])):
        fitted = Calibration(0.0, 1, *frequent_paths(torch.cat([ranks[i] for i in others]), config.max_rank, 11), 9)
        taken.append(reached(ranks[place], fitted.tree_of(entry["num_nodes"], entry["max_depth"])))
    assert entry["fixed_tau"] == walked(taken)
    assert entry["dynamic_tau"] == max(sizes.values())
    assert entry["dynamic_speedup"] == pytest.approx(entry["dynamic_tau"] / entry["fixed_tau"])
    chosen = Calibration(**entry).chosen()
    if entry["dynamic_speedup"] >= 1.02:
        assert sizes[chosen.num_nodes, chosen.max_depth] == entry["dynamic_tau"]
    else:
        assert entry["dynamic_nodes"] is entry["dynamic_depth"] is None and isinstance(chosen, Tree)


def test_one_text_has_no_other_half_to_count_on(base: Base) -> None:
    [entry] = calibrate(base, random_heads(DESIGNS["hydra"], base), PROMPTS[:1], replace(SMALL, temperatures=[0.0]))[
        "calibrations"
    ]
    assert entry["dynamic"] == [] and Calibration(**entry).dynamic_speedup is None
