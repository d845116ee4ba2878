"""A tree is what its paths say, and stays one when it is pruned."""

import random
from collections import Counter

import pytest
import torch
from random_models import random_tree

from euryale.decoding.tree.tree import ROOT_ONLY, Tree, chain, check_depth, medusa63
from euryale.errors import UserError


def test_from_paths_gives_parents_ranks_and_depths() -> None:
    tree = Tree.from_paths([(0,), (2,), (0, 1), (2, 0), (2, 0, 3)])
    assert tree.paths == ((), (0,), (2,), (0, 1), (2, 0), (2, 0, 3))
    assert tree.parents == (-1, 0, 0, 1, 2, 4)
    assert tree.ranks == (0, 0, 2, 1, 0, 3)
    assert tree.depths == (0, 1, 1, 2, 2, 3)
    assert tree.num_nodes == 6 and tree.max_depth == 3


def test_the_order_of_the_paths_given_does_not_matter() -> None:
    rng = random.Random(0)
    paths = list(medusa63().paths[1:])
    for _ in range(20):
        rng.shuffle(paths)
        assert Tree.from_paths(paths) == medusa63()


@pytest.mark.parametrize(
    ("paths", "reason"),
    [
        ([(0, 0)], "has no parent"),
        ([(0,), (1, 0)], "has no parent"),
        ([()], "has no parent"),
        ([(-1,)], "has no parent"),
        ([(0,), (0, -2)], "has no parent"),
        ([(0,), (0,)], "twice"),
    ],
)
def test_paths_that_are_no_tree_are_refused(paths: list[tuple[int, ...]], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        Tree.from_paths(paths)


@pytest.mark.parametrize(
    ("parents", "ranks"),
    [((0,), (0,)), ((-1, 1), (0, 0)), ((-1, 0, 3, 0), (0, 0, 0, 1)), ((-1, 0, 0), (0, 1, 1)), ((-1, 0), (0,))],
    ids=["no root", "own parent", "parent behind", "equal siblings", "lengths differ"],
)
def test_arrays_that_are_no_tree_are_a_bug(parents: tuple[int, ...], ranks: tuple[int, ...]) -> None:
    with pytest.raises(AssertionError):
        Tree(parents, ranks)


def test_medusa63_has_the_published_shape() -> None:
    tree = medusa63()
    assert tree.num_nodes == 63 + 1
    assert Counter(tree.depths) == {0: 1, 1: 10, 2: 28, 3: 23, 4: 2}
    # A few of the paths of FasterDecoding's mc_sim_7b_63, the two deepest among them.
    assert {(0, 0, 0, 0), (0, 0, 0, 1), (9, 0), (1, 6), (0, 9), (3, 1), (0, 7, 0), (2, 0, 0)} <= set(tree.paths)
    assert not {(1, 7), (0, 0, 1, 0), (3, 2), (0, 8, 0), (10,)} & set(tree.paths)


def test_a_chain_is_the_first_candidate_of_every_head() -> None:
    assert chain(3).parents == (-1, 0, 1, 2) and set(chain(3).ranks) == {0}
    assert Tree.from_paths([]) == chain(0) == ROOT_ONLY
    assert ROOT_ONLY.num_nodes == 1 and ROOT_ONLY.max_depth == 0


def test_the_chain_comes_first_and_parents_before_children() -> None:
    rng = random.Random(1)
    trees = [medusa63()] + [random_tree(rng, 5, 4, rng.randint(2, 40)) for _ in range(50)]
    for tree in trees:
        is_chain = [not any(path) for path in tree.paths]
        assert is_chain == sorted(is_chain, reverse=True), tree.paths
        assert [len(path) for path, first in zip(tree.paths, is_chain, strict=True) if first] == list(
            range(sum(is_chain))
        )
        assert all(parent < node for node, parent in enumerate(tree.parents))


def test_ancestors_are_exactly_the_prefixes_of_a_path() -> None:
    rng = random.Random(2)
    for _ in range(20):
        tree = random_tree(rng, 4, 5, rng.randint(1, 30))
        expected = [[path[: len(other)] == other for other in tree.paths] for path in tree.paths]
        assert torch.equal(tree.ancestors(), torch.tensor(expected))
    assert torch.equal(chain(4).ancestors(), torch.ones(5, 5, dtype=torch.bool).tril())


def test_pruning_keeps_what_fits_and_no_orphans() -> None:
    tree = medusa63()
    assert tree.pruned(4, 10) == tree
    small = tree.pruned(max_depth=2, num_ranks=5)
    assert set(small.paths) == {p for p in tree.paths if len(p) <= 2 and max(p, default=0) < 5}
    assert small.max_depth == 2 and max(small.ranks) == 4
    assert tree.pruned(0, 10) == ROOT_ONLY
    assert tree.pruned(4, 1) == chain(4)


def test_a_tree_deeper_than_the_heads_is_refused_by_name() -> None:
    check_depth(medusa63(), "medusa63", num_heads=4)
    with pytest.raises(UserError, match="tree=medusa63 is 4 deep, but the checkpoint has 3 heads"):
        check_depth(medusa63(), "medusa63", num_heads=3)
