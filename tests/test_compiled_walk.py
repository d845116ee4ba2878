"""The compiled walk says what torch's own operations say: token, path and whether a score is finite."""

import random
from collections.abc import Sequence

import pytest
import torch
from compilers import needs_compiler
from random_models import random_base, random_tree
from torch import Tensor

from euryale.decoding.accept import VerifyOutput, walk_exact
from euryale.decoding.compiled_walk import CompiledWalk, walk_of
from euryale.decoding.drafters.interface import Draft
from euryale.decoding.noise import gumbel
from euryale.decoding.random_streams import StepNoise
from euryale.decoding.sampling import Sampling
from euryale.decoding.sampling_batch import SamplingBatch
from euryale.decoding.tree.tree import Shape

pytestmark = needs_compiler


def assert_same(
    draft: Draft, logits_BNV: Tensor, samplings: Sequence[Sampling] | None = None, noise_BPV: Tensor | None = None
) -> VerifyOutput:
    settings = SamplingBatch.of(samplings or [Sampling()] * len(logits_BNV), logits_BNV.device)
    asked = draft, logits_BNV, settings, StepNoise(noise_BPV, None, None)
    found, expected = CompiledWalk()(*asked), walk_exact(*asked)
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


SAMPLINGS = {
    "one temperature": [Sampling(temperature=0.7)] * 3,
    "some rows greedy": [Sampling(temperature=1.3), Sampling(), Sampling(temperature=0.1)],
    "filters": [Sampling(temperature=0.7, top_k=3), Sampling(temperature=1.0, top_p=0.8), Sampling()],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("samplings", SAMPLINGS.values(), ids=SAMPLINGS)
def test_it_draws_the_same(samplings: list[Sampling], dtype: torch.dtype) -> None:
    """The noise is a window into more positions, of rows apart from each other, as KeyedNoise gives it."""
    rng, generator = random.Random(5), torch.Generator().manual_seed(5)
    by_greedy = 0
    for number, vocab_size in enumerate((2, 16, 37, 300)):
        tree = random_tree(rng, 5, 3, 14)
        shape = Shape.of_tree(tree)
        B, N = len(samplings), tree.num_nodes
        if number % 2:
            shape = Shape.of_parents(shape.parents_RN.repeat(B, 1), 5)
        logits_BNV = torch.randn(B, N, vocab_size, generator=generator).to(dtype)
        noise_BWV = gumbel(7, 3, B * 16, vocab_size, torch.device("cpu")).unflatten(0, (B, 16))
        draft = Draft(torch.randint(vocab_size, (B, N), generator=generator), shape)
        found = assert_same(draft, logits_BNV, samplings, noise_BWV[:, 4:12])
        by_greedy += int((found.targets_BN == logits_BNV.max(-1).indices).all())
    assert by_greedy < 4


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
