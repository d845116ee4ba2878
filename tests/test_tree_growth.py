"""A tree that grows best first holds the likeliest paths there are."""

import itertools

import pytest
import torch
from plain_heads import plain_heads
from random_models import random_base, random_heads

from euryale.base.base import Base
from euryale.decoding.config import AcceptConfig
from euryale.decoding.drafters.heads import HeadsDrafter
from euryale.decoding.drafters.interface import Draft, DraftInput
from euryale.decoding.drafters.tree_growth import DynamicGrowth, Levels
from euryale.decoding.engine import Engine
from euryale.decoding.tree.calibration import Calibration
from euryale.decoding.tree.tree import MOST_PARENTS, DynamicTree
from euryale.heads.heads import Heads
from euryale.kernels.rms_norm import normalise

V = 6


def chances_slowly(base: Base, heads: Heads, known: DraftInput, row: int, depth: int) -> dict[tuple[int, ...], float]:
    """The logarithm of every path's chance, each asked from the heads on its own."""
    chances: dict[tuple[int, ...], float] = {(): 0.0}
    for length in range(1, depth + 1):
        for path in itertools.product(range(V), repeat=length):
            tokens = torch.tensor([int(known.root_B[row]), *path[:-1]])
            embeddings_1JD = normalise(base.embed(tokens))[None]
            hidden_1D = heads.head_hidden(length - 1, known.hidden_BD[row : row + 1], embeddings_1JD)
            scores_V = (hidden_1D @ heads.output_weight(length - 1, base.lm_head_weight).T)[0]
            if known.noise_BPV is not None:
                scores_V = scores_V / known.temperature_B11 + known.noise_BPV[row, length - 1]
            chances[path] = chances[path[:-1]] + float(scores_V.log_softmax(-1)[path[-1]])
    return chances


def paths_of(draft: Draft, row: int) -> list[tuple[int, ...]]:
    parents = draft.shape.parents_RN[row].tolist()
    paths: list[tuple[int, ...]] = [()]
    for node, token in list(enumerate(draft.tokens_BN[row].tolist()))[1:]:
        assert parents[node] < node
        paths.append((*paths[parents[node]], token))
    return paths


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("kind", ["hydra", "medusa"])
def test_the_likeliest_paths_are_taken(kind: str, temperature: float) -> None:
    """With six tokens all eight parents of a level but the least likely are asked, so few nodes leave nothing out."""
    base = random_base("llama", V, dtype=torch.float64)
    heads = random_heads(plain_heads(kind, num_heads=3), base, seed=2)
    generator = torch.Generator().manual_seed(1)
    noise = -(-torch.rand(3, 4, V, generator=generator).log()).log() if temperature else None
    hidden_BD = torch.randn(3, 16, generator=generator, dtype=torch.float64) * 0.3
    known = DraftInput(hidden_BD, torch.tensor([0, 3, 5]), noise, temperature)
    shapes = set()
    for num_nodes in (2, 5, 9):
        draft = HeadsDrafter(base, heads, DynamicTree(num_nodes, 3, num_parents=8)).propose(known)
        assert draft.tokens_BN.shape == (3, num_nodes) and draft.is_real_BN is None
        for row in range(3):
            chances = chances_slowly(base, heads, known, row, 3)
            best = sorted(chances, key=lambda path: -chances[path])[:num_nodes]
            assert set(paths_of(draft, row)) == set(best)
            shapes.add(tuple(sorted(map(len, best))))
    assert len(shapes) > 3, "rows grow different trees"


def levels_of(logits_11V: torch.Tensor, asked: list[int] | None = None) -> Levels:
    """The same logits for every parent of every level; `asked` takes how many parents each level had."""
    num_parents = 1
    while True:
        if asked is not None:
            asked.append(num_parents)
        parents = yield logits_11V
        num_parents = parents.tokens_BP.shape[1]


def grown(growth: DynamicGrowth, roots: list[int], logits_11V: torch.Tensor, asked: list[int] | None = None) -> Draft:
    known = DraftInput(torch.zeros(len(roots), 1), torch.tensor(roots))
    return growth.grow(known, levels_of(logits_11V.expand(len(roots), -1, -1), asked), None)


def test_what_was_counted_is_mixed_in() -> None:
    tree, logits_11V = DynamicTree(3, 2), torch.tensor([[[2.0, 1.9, 0.0]]])
    device = torch.device("cpu")
    alone = grown(DynamicGrowth(tree, 3, device), [1], logits_11V)
    assert paths_of(alone, 0) == [(), (0,), (1,)]
    usual = Calibration(0.0, 3, [[0], [0, 0], [1]], [0.9, 0.8, 0.01], 100)
    counted = grown(DynamicGrowth(tree, 3, device, usual), [1], logits_11V)
    assert paths_of(counted, 0) == [(), (0,), (0, 0)], "the second candidate was hardly ever right"


def test_chances_beyond_all_bounds_put_no_child_before_its_parent() -> None:
    logits_11V = torch.tensor([[[2.0, 1.9, 0.0]]])
    usual = Calibration(0.0, 3, [[0], [0, 0], [1]], [2.0**63, 2.0**70, 0.01], 100)
    draft = grown(DynamicGrowth(DynamicTree(4, 2), 3, torch.device("cpu"), usual), [1], logits_11V)
    assert paths_of(draft, 0)[:3] == [(), (0,), (0, 0)]


@pytest.mark.parametrize(("num_nodes", "depth", "expected"), [(1, 4, 1), (2, 4, 2), (50, 1, 4), (50, 2, 13)])
def test_a_small_vocabulary_fills_fewer_nodes(num_nodes: int, depth: int, expected: int) -> None:
    growth = DynamicGrowth(DynamicTree(num_nodes, depth), 3, torch.device("cpu"))
    draft = grown(growth, [7, 8], torch.randn(1, 1, 3))
    assert draft.tokens_BN.shape == (2, expected) == (2, growth.num_nodes)
    for row in range(2):
        assert len(set(paths_of(draft, row))) == expected


@pytest.mark.parametrize(("num_nodes", "most"), [(2, 1), (4, 2), (8, 2), (16, 3), (64, MOST_PARENTS)])
def test_small_trees_ask_few_parents(num_nodes: int, most: int) -> None:
    asked: list[int] = []
    draft = grown(
        DynamicGrowth(DynamicTree(num_nodes, 3), 30, torch.device("cpu")), [7, 8], torch.randn(1, 1, 30), asked
    )
    assert draft.tokens_BN.shape == (2, num_nodes)
    assert asked == [1, *[most] * (min(3, num_nodes - 1) - 1)]


def test_a_token_that_is_certain_keeps_its_place_above_its_child() -> None:
    scores = torch.full((1, 1, 4), -1e9)
    scores[..., 2] = 0.0
    growth = DynamicGrowth(DynamicTree(12, 4), 4, torch.device("cpu"))
    draft = grown(growth, [0], scores)
    assert paths_of(draft, 0)[:5] == [(), (2,), (2, 2), (2, 2, 2), (2, 2, 2, 2)]


@pytest.mark.parametrize("tree", ["dynamic", "chain"])
@pytest.mark.parametrize("rule", ["exact", "rejection"])
def test_heads_that_are_not_finite_leave_the_text_alone(rule: str, tree: str) -> None:
    """They guess nothing right; a NaN that counts as likeliest would be kept before its parent, or before the root."""
    base = random_base("llama", V, seed=3)
    heads = random_heads(plain_heads("hydra"), base)
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter.fill_(torch.nan)
    engine = Engine(base, heads, "heads", tree, accept=AcceptConfig(rule, coupled=rule == "exact"))
    plain = Engine(base, drafter="none")
    # Under rejection a dynamic tree names its candidates with certainty, so that a seed draws another text.
    for temperature in (0.0,) if (rule, tree) == ("rejection", "dynamic") else (0.0, 1.0):
        found, expected = (
            x.generate([[1, 2, 3], [4]], 20, seed=[5, 6], temperature=temperature) for x in (engine, plain)
        )
        assert [one.ids for one in found] == [one.ids for one in expected]
