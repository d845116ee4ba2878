"""Accept walk in Triton: which nodes are accepted, and what that does to every row, in one launch without a host read.

A node misses when its token is not its parent's target. The nodes that miss are one 64-bit mask, so a node is accepted
when no bit of its ancestors is in it: N comparisons instead of a walk from node to node. Siblings carry different
tokens, hence the accepted nodes are one path, and a node's depth is the number of its ancestors.

Replaces about thirty small torch operations and the reading of accepted paths by the host. Shapes: those of
reference.accept_walk. Limits: N <= 64. One program of one warp for each row of the batch.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from euryale.kernels.reference import Answers, Walk
from euryale.kernels.triton.bits import popcount


@triton.jit
def accept_walk_kernel(
    tokens_ptr, targets_ptr, parents_ptr, ancestors_ptr, is_real_ptr,
    lengths_ptr, root_ptr, last_ptr, ring_ptr, written_ptr, limit_ptr, ends_ptr, is_done_ptr,
    paths_ptr, starts_ptr, counts_ptr, stride_pr, stride_ar,
    N: tl.constexpr, BLOCK_N: tl.constexpr, P: tl.constexpr, T: tl.constexpr, ENDS: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    node = tl.arange(0, BLOCK_N)
    is_node = node < N
    token = tl.load(tokens_ptr + b * N + node, mask=is_node, other=0)
    parent = tl.load(parents_ptr + b * stride_pr + node, mask=is_node, other=0)
    is_miss = (token != tl.load(targets_ptr + b * N + parent, mask=is_node, other=0)) & (node > 0) & is_node
    if REAL:
        is_miss = is_miss | (tl.load(is_real_ptr + b * N + node, mask=is_node, other=1) == 0) & (node > 0)
    miss = is_miss.to(tl.int32)
    miss_low = tl.sum(tl.where(node < 32, miss << (node & 31), 0), 0)  # distinct bits: their sum is their union
    miss_high = tl.sum(tl.where(node >= 32, miss << (node & 31), 0), 0)
    words_ptr = ancestors_ptr + b * stride_ar + node * 2
    low, high = tl.load(words_ptr, mask=is_node, other=0), tl.load(words_ptr + 1, mask=is_node, other=0)
    is_accepted = is_node & (((low & miss_low) | (high & miss_high)) == 0)
    depth = popcount(low) + popcount(high) - 1
    count = tl.sum(is_accepted.to(tl.int32), 0)
    last = tl.sum(tl.where(is_accepted & (depth == count - 1), node, 0), 0)
    root = tl.load(targets_ptr + b * N + last)
    length, written = tl.load(lengths_ptr + b), tl.load(written_ptr + b)
    room = tl.load(limit_ptr + b) - written
    was_done = tl.load(is_done_ptr + b) != 0
    is_done = was_done
    kept = 0
    for i in tl.static_range(P):
        is_next = is_accepted & (depth == i + 1)
        tl.store(paths_ptr + b * P + i, tl.sum(tl.where(is_accepted & (depth == i), node, 0), 0))
        gained = tl.where(i + 1 < count, tl.sum(tl.where(is_next, token, 0), 0), root)
        writes = (i < count) & (is_done == 0)
        tl.store(ring_ptr + b * T + (written + i) % T, gained, mask=writes)
        kept += writes.to(tl.int32)
        is_end = i + 1 >= room
        for e in tl.static_range(ENDS):
            is_end = is_end | (tl.load(ends_ptr + b * ENDS + e) == gained)
        is_done = is_done | (writes & is_end)
    count = tl.where(was_done, 0, count)
    tl.store(starts_ptr + b, length)
    tl.store(counts_ptr + b, count)
    tl.store(lengths_ptr + b, length + count)
    tl.store(written_ptr + b, written + kept)
    tl.store(root_ptr + b, root, mask=was_done == 0)
    tl.store(last_ptr + b, last.to(tl.int64), mask=was_done == 0)
    tl.store(is_done_ptr + b, is_done.to(tl.int8))


def accept_walk(
    tokens_BN: Tensor,
    targets_BN: Tensor,
    parents_RN: Tensor,
    ancestors_RNW: Tensor,
    answers: Answers,
    max_path: int,
    is_real_BN: Tensor | None = None,
) -> Walk:
    """reference.accept_walk."""
    B, N = tokens_BN.shape
    assert answers.ring_BT.shape[1] >= max_path, (answers.ring_BT.shape, max_path)
    assert N <= 64 and parents_RN.dtype == ancestors_RNW.dtype == torch.int32, (N, parents_RN.dtype)
    walk = Walk(
        tokens_BN.new_empty((B, max_path), dtype=torch.int32),
        tokens_BN.new_empty(B, dtype=torch.int32),
        tokens_BN.new_empty(B, dtype=torch.int32),
    )
    inputs = (tokens_BN, targets_BN, parents_RN, ancestors_RNW)
    real = tokens_BN if is_real_BN is None else is_real_BN.view(torch.int8)
    state = (*answers[:-1], answers.is_done_B.view(torch.int8))
    assert all(x.is_contiguous() for x in (*inputs, real, *state)), "the accept walk takes contiguous tensors"
    accept_walk_kernel[(B,)](
        *inputs, real, *state, *walk,
        parents_RN.stride(0) if len(parents_RN) > 1 else 0, ancestors_RNW.stride(0) if len(ancestors_RNW) > 1 else 0,
        N=N, BLOCK_N=max(2, triton.next_power_of_2(N)), P=max_path, T=answers.ring_BT.shape[1],
        ENDS=answers.ends_BE.shape[1], REAL=is_real_BN is not None, num_warps=1,
    )  # fmt: skip
    return walk
