"""The accept walk takes the path that a person would take by hand."""

import random

import pytest
import torch
from random_models import random_tree

from euryale.decoding.accept import accept_exact
from euryale.decoding.tree.tree import ROOT_ONLY, Shape, Tree, chain


def walk(tree: Tree, tokens: list[int], targets: list[int]) -> list[int]:
    """The rule in its own words: go to the child that carries the token the base wants, while there is one."""
    path = [0]
    while True:
        wanted = targets[path[-1]]
        children = [n for n in range(1, tree.num_nodes) if tree.parents[n] == path[-1] and tokens[n] == wanted]
        if not children:
            return path
        assert len(children) == 1, "siblings carry different tokens"
        path += children


def random_tokens(rng: random.Random, tree: Tree, vocab_size: int) -> list[int]:
    """Any tokens, but different ones on siblings, as candidates of different rank are."""
    tokens = [rng.randrange(vocab_size)]
    for node in range(1, tree.num_nodes):
        taken = {tokens[n] for n in range(1, node) if tree.parents[n] == tree.parents[node]}
        tokens.append(rng.choice([t for t in range(vocab_size) if t not in taken]))
    return tokens


def accepted_paths(tree: Tree, tokens: list[list[int]], targets: list[list[int]]) -> list[list[int]]:
    is_accepted_BN = accept_exact(torch.tensor(tokens), torch.tensor(targets), Shape.of_tree(tree))
    return [[node for node, is_on in enumerate(row) if is_on] for row in is_accepted_BN.tolist()]


@pytest.mark.parametrize("vocab_size", [2, 3, 5, 9])
def test_the_walk_equals_a_walk_by_hand_where_every_id_is_an_ordinary_token(vocab_size: int) -> None:
    rng = random.Random(vocab_size)
    lengths = set()
    for _ in range(150):
        tree = random_tree(rng, 6, vocab_size, rng.randint(1, 40))
        tokens = [random_tokens(rng, tree, vocab_size) for _ in range(3)]
        targets = [[rng.randrange(vocab_size) for _ in range(tree.num_nodes)] for _ in range(3)]
        paths = accepted_paths(tree, tokens, targets)
        assert paths == [walk(tree, *row) for row in zip(tokens, targets, strict=True)]
        lengths |= {len(path) for path in paths}
    assert len(lengths) >= 3, "the sample has short and long paths"


def test_rows_may_differ_in_shape_and_nodes_may_be_empty() -> None:
    """The same walk where every row has a tree of its own; an empty node is never a child, whatever id it holds."""
    rng = random.Random(8)
    num_longer = 0
    for _ in range(100):
        trees = [random_tree(rng, 5, 3, 12) for _ in range(3)]
        num_nodes = max(tree.num_nodes for tree in trees)
        targets = [[rng.randrange(3) for _ in range(num_nodes)] for _ in trees]
        tokens, parents, is_real = [], [], []
        for tree in trees:
            spare = num_nodes - tree.num_nodes
            tokens.append(random_tokens(rng, tree, 3) + [rng.randrange(3) for _ in range(spare)])
            parents.append([max(p, 0) for p in tree.parents] + [rng.randrange(tree.num_nodes) for _ in range(spare)])
            is_real.append([True] * tree.num_nodes + [False] * spare)
        shape = Shape.of_parents(torch.tensor(parents), 6)
        flags = accept_exact(torch.tensor(tokens), torch.tensor(targets), shape, torch.tensor(is_real))
        paths = [[node for node, is_on in enumerate(row) if is_on] for row in flags.tolist()]
        assert paths == [walk(*row) for row in zip(trees, tokens, targets, strict=True)]
        num_longer += sum(len(path) > 2 for path in paths)
    assert num_longer > 20


def test_a_path_may_be_all_zeros_and_ends_at_its_leaf() -> None:
    assert accepted_paths(chain(4), [[0] * 5], [[0] * 5]) == [[0, 1, 2, 3, 4]]
    assert accepted_paths(chain(4), [[0] * 5], [[0, 0, 1, 0, 0]]) == [[0, 1, 2]]
    assert accepted_paths(ROOT_ONLY, [[3]], [[1]]) == [[0]]


def test_a_match_below_a_miss_does_not_count() -> None:
    tree = Tree.from_paths([(0,), (1,), (0, 0), (1, 0)])
    # Node 4 (below node 3) carries what node 3 wants, but the root wants node 1.
    assert tree.parents == (-1, 0, 1, 0, 3)
    assert accepted_paths(tree, [[9, 5, 6, 7, 8]], [[5, 1, 1, 8, 8]]) == [[0, 1]]
