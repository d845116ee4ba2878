"""The number of nodes follows what was lately accepted, and grows again after steps without drafts."""

from dataclasses import replace

import pytest
import torch
from plain_heads import plain_heads
from random_models import five_tokens, random_base, random_heads

from euryale.decoding.config import TreeConfig
from euryale.decoding.drafters.adaptive import AdaptiveDrafter
from euryale.decoding.drafters.interface import Draft, Drafter, DraftInput
from euryale.decoding.engine import Engine
from euryale.decoding.tree.calibration import Calibration
from euryale.decoding.tree.tree import Shape, chain
from euryale.errors import UserError

TAU = {1: 1.0, 2: 1.5, 4: 1.9, 8: 2.2, 16: 2.4}
STEP_MS = {1: 1.0, 2: 1.1, 4: 1.3, 8: 1.55, 16: 2.6, 32: 4.2}


class Chain(Drafter):
    """A drafter of a fixed number of nodes that remembers being asked."""

    def __init__(self, num_nodes: int) -> None:
        self.num_nodes, self.max_depth = num_nodes, num_nodes - 1

    def propose(self, draft_input: DraftInput) -> Draft:
        return Draft(draft_input.root_B[:, None].expand(-1, self.num_nodes), Shape.of_tree(chain(self.num_nodes - 1)))


def adaptive(num_rows: int = 1) -> AdaptiveDrafter:
    drafter = AdaptiveDrafter({n: Chain(n) for n in TAU}, TAU, STEP_MS).begin(num_rows, 100)
    for row in range(num_rows):
        drafter.add(row)
    return drafter


def run(drafter: AdaptiveDrafter, gains: list[list[int]]) -> list[int]:
    """The nodes of every step while the rows gain so many tokens; 0 is a row that has ended."""
    texts = [[1, 2] for _ in gains[0]]
    nodes = []
    for step in gains:
        known = DraftInput(torch.zeros(len(texts), 4), torch.tensor([t[-1] for t in texts]), None, 0.0, texts)
        nodes.append(drafter.propose(known).tokens_BN.shape[1])
        for text, gain in zip(texts, step, strict=True):
            text += [3] * gain
    return nodes


def test_it_starts_with_what_calibration_chose() -> None:
    best = max(TAU, key=lambda n: TAU[n] / STEP_MS[n])
    assert run(adaptive(), [[1]]) == [best] == [4]


def test_it_grows_while_guesses_are_good_and_shrinks_to_nothing_while_they_are_bad() -> None:
    good, bad = run(adaptive(), [[4]] * 30), run(adaptive(), [[1]] * 30)
    assert good[-1] > good[0] and sorted(good) == good
    assert bad[:1] == [4] and 1 in bad and bad.count(1) > 10


def test_it_tries_again_after_some_steps_without_drafts() -> None:
    drafter = adaptive()
    nodes = run(drafter, [[1]] * 200)
    assert 0 < sum(n > 1 for n in nodes[50:]) < 40, "now and then, not often"
    assert 0.0 < drafter.ratio < 1.0


def test_a_batch_pays_for_all_of_its_rows() -> None:
    assert run(adaptive(8), [[2] * 8])[0] < 4, "a step over eight rows of four nodes costs what 32 nodes cost"


def test_rows_that_come_teach_nothing_of_their_prompts_and_the_last_takes_the_place_of_one_that_ended() -> None:
    drafter = adaptive(2)
    run(drafter, [[4, 1], [4, 1]])
    ratio = drafter.ratio
    drafter.swap_remove(0)
    drafter.add(1)
    texts = [[1, 2, 3, 3], [5] * 40]  # the row that gained one token a step, and a long prompt
    drafter.propose(DraftInput(torch.zeros(2, 4), torch.tensor([3, 5]), None, 0.0, texts))
    assert drafter.ratio < ratio, "only the row that stayed was looked at"


def test_steps_between_and_beyond_the_timed_ones_are_priced_by_the_line_through_them() -> None:
    drafter = adaptive()
    assert [drafter.price(n) for n in (1, 8, 32)] == [1.0, 1.55, 4.2]
    assert drafter.price(12) == pytest.approx(2.075) and drafter.price(64) == pytest.approx(7.4)
    assert AdaptiveDrafter({1: Chain(1)}, {1: 1.0}, {1: 2.0}).price(9) == 2.0


def calibration(**values: object) -> Calibration:
    paths, chances = [[0], [1], [0, 0], [2], [0, 1]], [0.5, 0.2, 0.2, 0.1, 0.1]
    entry = Calibration(0.0, 3, paths, chances, 100, {"1": 1.0, "3": 1.7, "6": 2.1}, {"1": 1.0, "3": 1.2, "6": 1.7})
    return replace(entry, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", ["calibrated", "dynamic"])
def test_an_adaptive_tree_writes_the_same_text_and_says_what_it_used(name: str, temperature: float) -> None:
    base = five_tokens(eos=4)
    heads = random_heads(plain_heads("hydra", num_heads=3), base)
    engine = Engine(base, heads, "heads", TreeConfig(name, size="adaptive"), [calibration()])
    plain = Engine(base, drafter="none")
    prompts = [[0, 2, 1], [3], [1, 1, 2, 0]]
    found, expected = (e.generate(prompts, 60, temperature=temperature, seed=[1, 2, 3]) for e in (engine, plain))
    assert [g.ids for g in found] == [g.ids for g in expected]
    [alone] = engine.generate(prompts[:1], 60, temperature=temperature, seed=1)
    assert set(alone.nodes) <= {1, 3, 6} and len(alone.nodes) == alone.num_steps
    assert alone.undrafted_share == alone.nodes.count(1) / alone.num_steps
    assert expected[0].undrafted_share == 1.0
    used = {n for g in engine.generate(prompts * 4, 60, temperature=temperature) for n in g.nodes}
    assert 1 in used | set(alone.nodes), "random heads are not worth their steps"


def test_adaptive_needs_timed_trees_of_the_heads() -> None:
    base = random_base("llama", 9)
    heads = random_heads(plain_heads("hydra", num_heads=3), base)
    tree = TreeConfig("calibrated", size="adaptive")
    with pytest.raises(UserError, match="chooses among trees whose steps were timed, and 0 were here"):
        Engine(base, heads, "heads", tree)
    with pytest.raises(UserError, match="steps were timed, and 0 were here. Calibrate with infer/calibrate.py"):
        Engine(base, heads, "heads", tree, [calibration(step_ms={}, tau={})])
    with pytest.raises(UserError, match="tree.size=adaptive is for drafter=heads, .* not for lookup"):
        Engine(base, None, "lookup", tree)
    with pytest.raises(UserError, match="tree=chain has one size"):
        Engine(base, heads, "heads", TreeConfig("chain", size="adaptive"))
    with pytest.raises(UserError, match="tree.size must be one of fixed, adaptive; got elastic"):
        Engine(base, heads, "heads", TreeConfig(size="elastic"))
    assert Engine(base, drafter="none", tree=tree).generate([[1]], 3)[0].nodes == [1, 1, 1]
    small = Engine(base, heads, "heads", replace(tree, num_nodes=3), [calibration()])
    assert small.num_nodes() == 3
