"""The fast drafter proposes what the heads say, one node at a time."""

import random

import pytest
import torch
from plain_heads import plain_heads
from random_models import HEAD_DESIGNS, random_base, random_heads, random_tree
from slow_induction import follower_slowly
from tolerance import assert_same_sums
from torch import Tensor

from euryale.base.base import Base
from euryale.decoding.drafters import head_matrices
from euryale.decoding.drafters.build import build_drafter
from euryale.decoding.drafters.head_matrices import HeadMatrices
from euryale.decoding.drafters.heads import HeadsDrafter
from euryale.decoding.drafters.interface import Drafter, DraftInput
from euryale.decoding.drafters.none import NoDrafter
from euryale.decoding.tree.tree import ROOT_ONLY, Shape, Tree, chain, medusa63
from euryale.errors import UserError
from euryale.heads.config import HeadsConfig
from euryale.heads.heads import Heads, build_heads
from euryale.kernels.rms_norm import normalise

V = 23


def propose_slowly(base: Base, heads: Heads, tree: Tree, known: DraftInput) -> list[list[int]]:
    """Node by node from `Heads.head_hidden`: the definition that the fast drafter is measured against."""
    rows = []
    for row in range(len(known.root_B)):
        tokens = [int(known.root_B[row])]
        for node in range(1, tree.num_nodes):
            k = tree.depths[node] - 1
            path: list[int] = []  # tokens from the root to this node's parent
            parent = tree.parents[node]
            while parent >= 0:
                path.insert(0, tokens[parent])
                parent = tree.parents[parent]
            embeddings_1JD = normalise(base.embed(torch.tensor(path)))[None]
            if heads.config.induction:  # the known tokens, and after them the one that followed them earlier
                J, text = heads.num_known_tokens(k), list(known.texts[row])
                whole = text + path[1:]
                place = follower_slowly(whole, len(text) - 2, J, heads.config.induction)
                found_11D = normalise(base.embed(torch.tensor([[whole[place]]]))) * (place >= 0)
                embeddings_1JD = torch.cat([embeddings_1JD[:, :J], found_11D], 1)
            hidden_1D = heads.head_hidden(k, known.hidden_BD[row : row + 1], embeddings_1JD)
            scores_V = (hidden_1D @ heads.output_weight(k, base.lm_head_weight).T)[0]
            if known.noise_BPV is not None:
                scores_V = scores_V.float() / known.temperature_B11 + known.noise_BPV[row, k]
            if heads.draft_ids is not None:
                is_draft_V = torch.isin(torch.arange(base.vocab_size), heads.draft_ids)
                scores_V = scores_V.masked_fill(~is_draft_V, float("-inf"))
            order = scores_V.sort(descending=True).indices
            tokens.append(int(order[tree.ranks[node]]))
        rows.append(tokens)
    return rows


def random_known(
    base: Base, num_rows: int, num_depths: int, temperature: float, seed: int, states: int = 1
) -> DraftInput:
    generator = torch.Generator().manual_seed(seed)
    noise: Tensor | None = None
    if temperature > 0:
        noise = -(-torch.rand(num_rows, num_depths + 1, V, generator=generator).log()).log()
    hidden_BD = torch.randn(num_rows, states * base.hidden_size, generator=generator, dtype=base.dtype)
    root_B = torch.randint(V, (num_rows,), generator=generator)
    texts = torch.randint(V, (num_rows, 60), generator=generator).tolist()
    ids = [text[row:] + [int(root)] for row, (text, root) in enumerate(zip(texts, root_B, strict=True))]
    return DraftInput(hidden_BD, root_B, noise, temperature, ids)


def begin(drafter: Drafter, known: DraftInput) -> Drafter:
    """The drafter, told of these rows."""
    begun = drafter.begin(len(known.texts), 64)
    for row in range(len(known.texts)):
        begun.add(row)
    return begun


def design_name(design: HeadsConfig) -> str:
    root = "" if design.root_token else "-no-root"
    return (
        f"{design.kind}{root}-{design.body}-{design.output}-{design.num_layers}-{design.vocab_share}-{design.induction}"
    )


@pytest.mark.parametrize("design", HEAD_DESIGNS, ids=design_name)
def test_the_fast_drafter_equals_its_slow_twin(design: HeadsConfig) -> None:
    # float64: random scores are then never so close that the order of additions decides.
    rng = random.Random(design_name(design))
    base = random_base(rng.choice(["llama", "qwen3"]), V, seed=3, dtype=torch.float64)
    heads = random_heads(design, base, seed=rng.randrange(1000))
    trees = [medusa63().pruned(4, heads.num_candidates), chain(4), chain(1)] + [
        random_tree(rng, rng.randint(2, 4), 6, rng.randint(2, 20)) for _ in range(3)
    ]
    for number, tree in enumerate(trees):  # the 63 nodes once are enough
        drafter = HeadsDrafter(base, heads, tree)
        for temperature in (0.0, 0.8) if number else (0.0,):
            known = random_known(base, rng.randint(1, 3), tree.max_depth, temperature, number, heads.num_states)
            assert begin(drafter, known).propose(known).tokens_BN.tolist() == propose_slowly(base, heads, tree, known)


def test_a_large_vocabulary_keeps_the_correction_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    base = random_base("llama", V, dtype=torch.float64)
    heads = random_heads(plain_heads(output="lowrank", output_rank=3, vocab_share=0.6), base)
    tree, known = Tree.from_paths([(0,), (1,), (0, 0), (0, 1), (0, 0, 0)]), random_known(base, 3, 3, 0.8, seed=1)
    whole = HeadsDrafter(base, heads, tree).propose(known).tokens_BN.tolist()
    monkeypatch.setattr("euryale.decoding.drafters.head_matrices._TAKES_CORRECTION_IN", 0)
    apart = HeadsDrafter(base, heads, tree).propose(known).tokens_BN.tolist()
    assert apart == whole == propose_slowly(base, heads, tree, known)


def test_siblings_carry_different_tokens_and_hydra_children_depend_on_their_parent() -> None:
    base = random_base("llama", V, dtype=torch.float64)
    tree = Tree.from_paths([(a,) for a in range(5)] + [(a, 0) for a in range(5)])
    known = random_known(base, 4, 2, 0.0, seed=1)
    below = {}
    for design in (plain_heads("hydra"), plain_heads("medusa")):
        tokens = HeadsDrafter(base, random_heads(design, base), tree).propose(known).tokens_BN
        first = [n for n in range(1, 11) if tree.depths[n] == 1]
        assert all(len(set(row)) == 5 for row in tokens[:, first].tolist())
        second = [n for n in range(1, 11) if tree.depths[n] == 2]
        below[design.kind] = [len(set(row)) for row in tokens[:, second].tolist()]
    assert below["medusa"] == [1, 1, 1, 1] and max(below["hydra"]) > 1


def test_the_first_chain_may_be_any_rank_order_of_the_tree() -> None:
    """The drafter works in levels, the tree puts its first chain in front: tokens land on the right nodes."""
    base = random_base("llama", V, dtype=torch.float64)
    heads = random_heads(plain_heads("hydra"), base)
    chain_first, known = Tree.from_paths([(0,), (0, 0), (0, 0, 0), (1,), (1, 1)]), random_known(base, 1, 3, 0.0, 5)
    assert chain_first.depths == (0, 1, 2, 3, 1, 2)
    tokens = HeadsDrafter(base, heads, chain_first).propose(known).tokens_BN[0].tolist()
    assert tokens[:4] == HeadsDrafter(base, heads, chain(3)).propose(known).tokens_BN[0].tolist()


@pytest.mark.parametrize("tree", [ROOT_ONLY, chain(2)], ids=["root", "chain"])
def test_the_same_row_drafts_the_same_in_any_batch(tree: Tree) -> None:
    base = random_base("qwen2", V, dtype=torch.float64)
    drafter = HeadsDrafter(base, random_heads(plain_heads("hydra"), base), tree)
    known = random_known(base, 5, 2, 1.0, seed=2)
    together = drafter.propose(known).tokens_BN
    for row in range(5):
        part = slice(row, row + 1)
        alone = DraftInput(known.hidden_BD[part], known.root_B[part], known.noise_BPV[part], 1.0)  # type: ignore[index]
        assert torch.equal(drafter.propose(alone).tokens_BN, together[part])


def test_untrained_heads_propose_what_the_base_would_say() -> None:
    base = random_base("llama", V)
    for design in (plain_heads("hydra"), plain_heads("medusa", output="own"), plain_heads("medusa", body="resblock")):
        heads = build_heads(design, base.lm_head_weight)
        known = random_known(base, 3, 4, 0.0, seed=0)
        expected = base.logits(known.hidden_BD).argmax(-1)
        assert torch.equal(
            HeadsDrafter(base, heads, chain(4)).propose(known).tokens_BN[:, 1:], expected[:, None].expand(3, 4)
        )


def test_no_drafter_repeats_the_root() -> None:
    base = random_base()
    drafter = build_drafter("none", base, None, ROOT_ONLY)
    assert isinstance(drafter, NoDrafter)
    assert drafter.propose(random_known(base, 2, 0, 0.0, seed=0)).tokens_BN.shape == (2, 1)


def test_a_shape_made_of_parents_is_the_shape_of_the_tree() -> None:
    rng = random.Random(4)
    for _ in range(30):
        trees = [random_tree(rng, 9, 3, 20) for _ in range(3)]
        num_nodes = min(tree.num_nodes for tree in trees)
        cut = [Tree(tree.parents[:num_nodes], tree.ranks[:num_nodes]) for tree in trees]
        expected = [Shape.of_tree(tree) for tree in cut]
        found = Shape.of_parents(torch.cat([shape.parents_RN for shape in expected]), max(t.max_depth for t in cut))
        for part, parts in zip(found, zip(*expected, strict=True), strict=True):
            assert torch.equal(part, torch.cat(parts))


def test_a_drafter_that_cannot_be_is_refused() -> None:
    base = random_base()
    with pytest.raises(UserError, match="drafter must be one of none, heads, lookup, .* model; got clover"):
        build_drafter("clover", base, None, ROOT_ONLY)
    with pytest.raises(UserError, match="drafter=heads needs a heads checkpoint"):
        build_drafter("heads", base, None, ROOT_ONLY)


@pytest.mark.parametrize("design", HEAD_DESIGNS[::3], ids=design_name)
def test_half_precision_and_kept_embeddings_change_scores_by_rounding_alone(
    design: HeadsConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """float32 bases are drafted in bfloat16 on processors that multiply it, from a table of normalised embeddings."""
    base = random_base("llama", V, seed=4)
    heads = random_heads(design, base)
    hidden_BD = torch.randn(2, 16 * heads.num_states, generator=torch.Generator().manual_seed(0))
    known = DraftInput(hidden_BD, torch.tensor([3, 5]), None, 0.0, [[3], [5]])
    found = {}
    for dtype, entries in ((torch.float32, 0), (torch.float32, 1 << 25), (torch.bfloat16, 1 << 25)):
        monkeypatch.setattr(head_matrices, "draft_dtype", lambda base, dtype=dtype: dtype)
        monkeypatch.setattr(head_matrices, "_TABLE_ENTRIES", entries)
        matrices = HeadMatrices(base, heads)
        matrices.prepare(2)
        entry = matrices.enter(known, 2)
        path_BPC = matrices.extend(None, torch.zeros(1, dtype=torch.long), torch.tensor([[1, 2], [4, 0]]))
        followed_BP = torch.tensor([[4, -1], [-1, 2]])[:, : 2 if design.kind == "hydra" else 1]
        followed = followed_BP if design.induction else None
        found[dtype, entries] = matrices.logits(1, entry, path_BPC, followed).float()
    slow = found[torch.float32, 0]
    assert_same_sums(found[torch.float32, 1 << 25], slow)
    error = (found[torch.bfloat16, 1 << 25] - slow).square().mean().sqrt() / slow.std()
    assert 0 < error < 0.03
