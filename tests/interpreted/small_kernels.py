"""The small Triton kernels in the interpreter against their specification: equal, or to the last bit of a rounding."""

import pytest
import torch
from kernel_trees import parents_of, random_tree
from torch import Tensor

from euryale.kernels import reference, reference_small
from euryale.kernels.triton.accept_walk import accept_walk
from euryale.kernels.triton.draw import draw
from euryale.kernels.triton.kv_commit import kv_commit
from euryale.kernels.triton.kv_write import kv_write
from euryale.kernels.triton.rms_norm import rms_norm
from euryale.kernels.triton.swiglu import swiglu
from euryale.kernels.triton.top_k import top_k

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])


def random_answers(B: int, ring: int) -> reference.Answers:
    """Rows that have said something, near the end of a ring; some are about to end, one in five is done."""
    written = torch.randint(0, 40, (B,), dtype=torch.int32)
    return reference.Answers(
        lengths_B=torch.randint(0, 60, (B,), dtype=torch.int32),
        root_B=torch.randint(0, 9, (B,)),
        last_B=torch.zeros(B, dtype=torch.int64),
        ring_BT=torch.full((B, ring), -7),
        written_B=written,
        limit_B=written + torch.randint(1, 9, (B,), dtype=torch.int32),
        ends_BE=torch.tensor([[5, -1]] * B),
        is_done_B=torch.rand(B) < 0.2,
    )


def random_tokens(parents_RN: Tensor, B: int) -> tuple[Tensor, Tensor]:
    """Tokens and targets of which siblings differ, and a child is right with a good chance."""
    N = parents_RN.shape[1]
    targets, tokens = torch.randint(0, 9, (B, N)), torch.randint(0, 9, (B, N))
    for b in range(B):
        parents = parents_RN[b % len(parents_RN)].tolist()
        for node in range(N):
            children = [c for c in range(1, N) if parents[c] == node]
            wrong = [t for t in range(9 + N) if t != targets[b, node]]
            ids = ([int(targets[b, node])] if torch.rand(()) < 0.8 else []) + wrong
            for child, token in zip(children, ids, strict=False):
                tokens[b, child] = token
    return tokens, targets


@pytest.mark.parametrize("N", [1, 2, 7, 32, 33, 64])
def test_accept_walk_and_commit_are_the_specification(N: int) -> None:
    """Words of the mask end at 32; trees of rows and shared ones; nodes without a candidate; finished rows."""
    torch.manual_seed(N)
    for trial in range(4):
        B = 3
        trees = torch.cat([random_tree(N) for _ in range(1 if trial % 2 else B)])
        parents, words = parents_of(trees), reference.pack_ancestors(trees)
        tokens, targets = random_tokens(parents, B)
        is_real = None if trial < 2 else torch.rand(B, N) < 0.9
        longest = int(trees.sum(-1).max())
        want = random_answers(B, max(16, longest))
        got = reference.Answers(*(x.clone() for x in want))
        walk = reference.accept_walk(tokens, targets, parents, words, want, longest, is_real)
        found = accept_walk(tokens, targets, parents, words, got, longest, is_real)
        for name, a, b in zip(walk._fields + want._fields, (*found, *got), (*walk, *want), strict=True):
            assert torch.equal(a.to(b.dtype), b), (trial, name)
        kv = torch.randn(4, B + 1, 2, 130, 24)[:, :B]  # rows of a larger arena, and a head width of no power of two
        expected = kv.clone()
        reference.kv_commit(expected, walk)
        kv_commit(kv, found)
        assert torch.equal(kv, expected)


@DTYPES
@pytest.mark.parametrize(("D", "norms"), [(16, False), (24, True)])
def test_rope_and_cache_write_are_the_specification(dtype: torch.dtype, D: int, norms: bool) -> None:
    """One unit in the last place: the interpreter's own rounding of products may differ from torch's."""
    torch.manual_seed(D)
    B, N, H, G, S = 2, 3, 4, 2, 12
    qkv = torch.randn(B, N, H + 2 * G, D).to(dtype)
    angles = torch.arange(40)[:, None] * torch.rand(D // 2)
    lengths, depths = torch.tensor([4, 9], dtype=torch.int32), torch.tensor([[0, 1, 1]], dtype=torch.int32)
    weights = (torch.rand(D).to(dtype), torch.rand(D).to(dtype), 1e-6) if norms else None
    caches = [torch.zeros(2, B, G, S, D, dtype=dtype) for _ in range(2)]
    inputs = (qkv, angles.cos(), angles.sin(), lengths, depths)
    want = reference_small.kv_write(*inputs, *caches[0], weights)
    got = kv_write(*inputs, *caches[1], weights)
    close = dict(rtol=4e-7, atol=1e-6) if dtype == torch.float32 else dict(rtol=2e-3, atol=1e-3)
    torch.testing.assert_close(got, want, **close)
    torch.testing.assert_close(caches[1], caches[0], **close)
    assert torch.equal(caches[1][1], caches[0][1])  # values are copies


@DTYPES
@pytest.mark.parametrize(("V", "num", "tile"), [(200, 4, 64), (65, 10, 64), (7, 7, 64), (300, 1, 128)])
def test_top_k_breaks_ties_by_the_lowest_id(dtype: torch.dtype, V: int, num: int, tile: int) -> None:
    """Few different scores, negative ones, both zeros, an infinity, and a last tile that is cut."""
    torch.manual_seed(V)
    scores = (torch.randint(-4, 5, (3, V)) * -0.5).to(dtype)
    scores[0, V // 2], scores[1, -1] = -torch.inf, torch.inf
    values, ids = top_k(scores, num, tile)
    want_values, want_ids = reference_small.top_k(scores, num)
    assert torch.equal(ids, want_ids) and torch.equal(values, want_values)


def test_nan_of_either_sign_wins_as_in_torch() -> None:
    """The decoder finds broken logits by looking at the score that won."""
    scores = torch.randn(2, 100)
    scores[0, 7], scores[1, 60], scores[0, 3] = torch.nan, -torch.tensor(torch.nan), torch.inf
    ones = torch.ones(2, dtype=torch.int64)
    for temperature in (0.0, 0.8):
        assert draw(scores, torch.full((2,), temperature), ones, ones.int(), tile=64).tolist() == [7, 60]
    values, ids = top_k(scores, 2, tile=64)
    assert ids[:, 0].tolist() == [7, 60] and ids[0, 1] == 3 and values[:, 0].isnan().all()


@DTYPES
def test_draw_is_the_specification(dtype: torch.dtype) -> None:
    """Greedy rows and drawn ones in one call; seeds beyond 32 bits; ties in the greedy rows."""
    torch.manual_seed(0)
    M, V = 6, 300
    scores = torch.randint(-3, 4, (M, V)).to(dtype)
    temperature = torch.tensor([0.0, 0.7, 1.0, 0.0, 2.5, 1.0])
    seeds, positions = torch.tensor([1, 2, 2**63 - 1, 2**40, 2**32, 0]), torch.arange(M, dtype=torch.int32) * 9999
    want = reference_small.draw(scores, temperature, seeds, positions)
    assert torch.equal(draw(scores, temperature, seeds, positions, tile=128), want)


@DTYPES
@pytest.mark.parametrize("C", [32, 100])
@pytest.mark.parametrize("add", [False, True])
def test_rms_norm_is_the_specification(dtype: torch.dtype, C: int, add: bool) -> None:
    torch.manual_seed(C)
    x, residual, weight = torch.randn(5, C).to(dtype), torch.randn(5, C).to(dtype), torch.randn(C).to(dtype)
    got, want = (f(x, weight, 1e-5, residual if add else None) for f in (rms_norm, reference_small.rms_norm))
    assert torch.equal(got[1], want[1])
    torch.testing.assert_close(got[0], want[0], rtol=1e-6 if dtype == torch.float32 else 2e-3, atol=1e-6)


@DTYPES
def test_swiglu_is_the_specification(dtype: torch.dtype) -> None:
    gate_up = (torch.randn(3, 2 * 1100) * 5).to(dtype)
    close = dict(rtol=2e-6, atol=1e-7) if dtype == torch.float32 else dict(rtol=2e-3, atol=1e-6)
    torch.testing.assert_close(swiglu(gate_up), reference_small.swiglu(gate_up), **close)
