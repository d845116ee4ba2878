"""A copied chain joins the heads' tree where they part, and never doubles a node."""

import random

import torch
from plain_heads import plain_heads
from random_models import five_tokens, random_base, random_heads, random_tree

from euryale.decoding.config import DrafterConfig
from euryale.decoding.drafters.heads_lookup import graft
from euryale.decoding.drafters.interface import Draft
from euryale.decoding.engine import Engine
from euryale.decoding.tree.tree import Shape, Tree, chain


def paths_of(draft: Draft, row: int) -> list[tuple[int, ...]]:
    """The paths of the nodes that carry a candidate."""
    parents, tokens = draft.shape.parents_RN[row].tolist(), draft.tokens_BN[row].tolist()
    is_real = draft.is_real_BN[row].tolist() if draft.is_real_BN is not None else [True] * len(tokens)
    paths: list[tuple[int, ...]] = [()]
    for node in range(1, len(tokens)):
        paths.append((*paths[parents[node]], tokens[node]))
    return [path for path, real in zip(paths, is_real, strict=True) if real]


def test_the_chain_hangs_where_the_tree_stops_saying_the_same() -> None:
    tree = Tree.from_paths([(0,), (0, 0), (1,)])
    tokens_BN = torch.tensor([[9, 1, 2, 3]] * 5)
    chains = [[1, 2, 5, 6], [3, 4, 5, 6], [7, 1, 2, 3], [1, 2, 0, 0], [0, 0, 0, 0]]
    lengths_B = torch.tensor([4, 4, 3, 2, 0])
    found = graft(Draft(tokens_BN, Shape.of_tree(tree)), torch.tensor(chains), lengths_B, 2, 4)
    heads = {(), (1,), (1, 2), (3,)}
    added = [{(1, 2, 5), (1, 2, 5, 6)}, {(3, 4), (3, 4, 5)}, {(7,), (7, 1)}, set(), set()]
    assert [set(paths_of(found, row)) for row in range(5)] == [heads | more for more in added]
    assert found.shape.depths_RN[0].tolist() == [0, 1, 2, 1, 3, 4]


def test_no_path_comes_twice_whatever_the_tree_and_the_chain() -> None:
    rng = random.Random(5)
    num_shared = 0
    for _ in range(200):
        tree = random_tree(rng, 4, 3, rng.randint(1, 12))
        rows, chains = [], []
        for _ in range(3):
            tokens = [0]
            for node in range(1, tree.num_nodes):
                taken = {tokens[n] for n in range(1, node) if tree.parents[n] == tree.parents[node]}
                tokens.append(rng.choice([t for t in range(4) if t not in taken]))
            rows.append(tokens)
            chains.append([rng.randrange(4) for _ in range(8)])
        lengths, spare = [rng.randint(0, 8) for _ in rows], rng.randint(1, 4)
        before = Draft(torch.tensor(rows), Shape.of_tree(tree))
        after = graft(before, torch.tensor(chains), torch.tensor(lengths), spare, 8)
        for row, (line, length) in enumerate(zip(chains, lengths, strict=True)):
            own = Draft(before.tokens_BN[row : row + 1], before.shape)
            said = set(paths_of(own, 0))
            found = paths_of(after, row)
            shared = max(d for d in range(length + 1) if tuple(line[:d]) in said)
            added = {tuple(line[:d]) for d in range(shared + 1, min(length, shared + spare) + 1)}
            assert len(set(found)) == len(found) and set(found) == said | added
            num_shared += shared > 0
    assert num_shared > 50


def test_a_text_that_repeats_is_drafted_further_than_the_heads_reach() -> None:
    base = random_base("llama", 13, dtype=torch.float64)
    heads = random_heads(plain_heads("hydra", num_heads=2), base)
    [plain], [alone], [both] = (
        Engine(base, heads, drafter, chain(2)).generate([[1, 2, 3]], max_new_tokens=100)
        for drafter in ("none", "heads", DrafterConfig("heads+lookup", spare=6))
    )
    assert plain.ids == alone.ids == both.ids
    assert both.tau > 1.5 * alone.tau and max(both.accepted) == 7


def test_rows_that_end_leave_the_others_alone() -> None:
    base = five_tokens(eos=4, max_length=48)
    heads = random_heads(plain_heads("hydra", num_heads=2), base)
    prompts = [[0, 2], [3, 1, 0, 3, 1], [1] * 20]
    engine = Engine(base, heads, "heads+lookup", chain(2))
    alone = [engine.generate([prompt], 40, temperature=0.9)[0].ids for prompt in prompts]
    assert [g.ids for g in engine.generate(prompts, 40, temperature=0.9)] == alone
