"""The compiled walk says what torch's own operations say: token, path and whether a score is finite."""

import random

import pytest
import torch
from compilers import needs_compiler
from random_models import random_base, random_tree
from torch import Tensor

from euryale.decoding.accept import VerifyOutput, walk_exact
from euryale.decoding.compiled_walk import CompiledWalk, walk_of
from euryale.decoding.drafters.interface import Draft
from euryale.decoding.tree.tree import Shape

pytestmark = needs_compiler


def assert_same(draft: Draft, scores_BNV: Tensor) -> VerifyOutput:
    found, expected = CompiledWalk()(draft, scores_BNV), walk_exact(draft, scores_BNV)
    for part, wanted in zip(found, expected, strict=True):
        assert part.dtype == wanted.dtype and torch.equal(part, wanted)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab_size", [2, 3, 16, 37, 200])
def test_it_takes_the_same_path(vocab_size: int, dtype: torch.dtype) -> None:
    """Few different scores, so that many are equal; rows of one shape and of their own, with and without candidates."""
    rng, generator = random.Random(vocab_size), torch.Generator().manual_seed(vocab_size)
    longest = 0
    for number in range(40):
        trees = [random_tree(rng, 5, 3, 14) for _ in range(3)]
        N = min(tree.num_nodes for tree in trees)
        B, shape = 3, Shape.of_tree(trees[0].first(N))
        if number % 2:
            shape = Shape.of_parents(torch.cat([Shape.of_tree(tree.first(N)).parents_RN for tree in trees]), 5)
        scores_BNV = torch.randint(-3, 3, (B, N, vocab_size), generator=generator).to(dtype)
        targets_BN = scores_BNV.max(-1).indices
        parents_BN = shape.parents_RN.expand(B, N)
        is_likely_BN = torch.rand(B, N, generator=generator) < 0.8
        tokens_BN = torch.where(is_likely_BN, targets_BN.gather(1, parents_BN), 0)
        is_real_BN = torch.rand(B, N, generator=generator) < 0.9 if number % 3 else None
        found = assert_same(Draft(tokens_BN, shape, is_real_BN), scores_BNV)
        longest = max(longest, int(found.is_accepted_BN.sum(-1).max()))
    assert longest > 4


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_that_are_not_finite_are_told(broken: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    shape = Shape.of_tree(random_tree(random.Random(2), 3, 3, 8))
    N = shape.parents_RN.shape[1]
    for vocab_size in (5, 16, 70):
        for places in (slice(None), slice(1, None, 3), slice(vocab_size - 1, None), slice(0)):
            scores_BNV = torch.randn(2, N, vocab_size, generator=generator).to(dtype)
            scores_BNV[:, 1:4, places] = broken
            assert_same(Draft(torch.zeros(2, N, dtype=torch.long), shape), scores_BNV)


def test_other_numbers_and_forwards_are_walked_by_torch() -> None:
    shape = Shape.of_tree(random_tree(random.Random(2), 3, 3, 8))
    tokens_BN = torch.zeros(1, shape.parents_RN.shape[1], dtype=torch.long)
    assert_same(Draft(tokens_BN, shape), torch.randn(*tokens_BN.shape, 9, dtype=torch.float64))
    assert isinstance(walk_of(random_base("llama")), CompiledWalk)
    assert walk_of(random_base("llama", dtype=torch.float64)) is walk_exact


def test_two_threads_walk_as_one() -> None:
    shape = Shape.of_tree(random_tree(random.Random(3), 3, 3, 9))
    N = shape.parents_RN.shape[1]
    scores_BNV = torch.randn(1, N, 1 << 18, generator=torch.Generator().manual_seed(4))  # worth two
    draft = Draft(torch.zeros(1, N, dtype=torch.long), shape)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert_same(draft, scores_BNV)
    finally:
        torch.set_num_threads(before)
