"""Tree attention in Triton: N nodes look at a long committed prefix and at their own ancestors.

out = softmax(scale q K^T) V over the keys at positions 0 to p of a node at position p = length + depth.

Keys are split by position (tree_split.py says where and why). prefix_kernel: tiles of slots shared by a block of
BLOCK_M query rows; splits of fixed size leave (sum of exp2 * v, largest score, sum of exp2). tail_kernel: the splits
added up in order, then the tail of each node. A row that needs less of the prefix than its neighbours sees more tiles
that are masked: these change no bit (exp2(-inf) = 0, and a factor of exp2(0) = 1).

Bytes: K and V once for each block of rows (one block up to BLOCK_M = N * H / G), where repeat_kv with a dense mask
reads H / G times as much, and a mask of N * S numbers. The tail reads REACH + TILE keys a node out of the L2 cache.
Rows are node * (H / G) + head of the group, so that grouped queries share what is read. Lengths and masks are in
device memory and the grid does not depend on them: one CUDA graph serves every length. The number of splits is no
constant of the code: a cache of another size compiles nothing.

Shapes: q [B, N, H, D], k and v [B, G, S, D], any strides with a last one of 1; lengths [B] int32; ancestors [1 or B,
N, 2] int32 (reference.pack_ancestors). Limits: N <= 64, depth <= REACH = 32, D a power of two from 16 to 128, H / G
<= 16.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from euryale.kernels.tree_split import MOST_GROUP, MOST_NODES, REACH, TILE, split_size
from euryale.kernels.triton.bits import popcount

BLOCK_M = 64
NUM_STAGES = {16: 2, 32: 2, 64: 2, 128: 3}  # with 3 at head width 64 sm_80 spills 16 bytes
LOG2_E = 1.4426950408889634


@triton.jit
def _join(best, total, acc, score, v):
    """Online softmax: adds the keys with these scores [rows, keys] (base 2; -inf is masked) and values [keys, D]."""
    top = tl.maximum(best, tl.max(score, 1))
    shift = tl.where(top == -float("inf"), 0.0, top)
    share = tl.exp2(score - shift[:, None])
    fade = tl.exp2(best - shift)
    acc = tl.dot(share.to(v.dtype), v, acc * fade[:, None], input_precision="ieee")
    return top, total * fade + tl.sum(share, 1), acc


@triton.jit
def prefix_kernel(
    q_ptr, k_ptr, v_ptr, lengths_ptr, ancestors_ptr, part_ptr, stats_ptr, scale_log2,
    stride_qb, stride_qn, stride_qh, stride_kb, stride_kg, stride_ks, stride_vb, stride_vg, stride_vs, stride_ab,
    N: tl.constexpr, GROUP: tl.constexpr, G: tl.constexpr, D: tl.constexpr, WINDOW: tl.constexpr,
    SPLITS, SPLIT: tl.constexpr, REACH: tl.constexpr, TILE: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Program (block of rows x key/value head, split, batch row): part [B, G, SPLITS, N * GROUP, D] and stats [..,
    2]."""
    M: tl.constexpr = N * GROUP
    g = tl.program_id(0) % G
    m = tl.program_id(0) // G * BLOCK_M + tl.arange(0, BLOCK_M)
    split = tl.program_id(1)
    b = tl.program_id(2).to(tl.int64)
    d = tl.arange(0, D)
    is_row = m < M
    node = m // GROUP
    words_ptr = ancestors_ptr + b * stride_ab + node * 2
    depth = popcount(tl.load(words_ptr, mask=is_row, other=0)) + popcount(tl.load(words_ptr + 1, mask=is_row, other=0))
    position = tl.load(lengths_ptr + b) + depth - 1
    dense = tl.where(is_row, tl.maximum(position - REACH, 0) // TILE * TILE, 0)
    begin = split * SPLIT
    end = tl.minimum(begin + SPLIT, tl.max(dense, 0))
    if begin >= end:
        return  # after every row's prefix; the tail's kernel knows, so nothing has to be cleared
    if WINDOW > 0:
        oldest = tl.min(tl.where(is_row, position, 2147483647), 0) - WINDOW + 1
        begin = tl.minimum(tl.maximum(begin, tl.maximum(oldest, 0) // TILE * TILE), end)
    q = tl.load(
        q_ptr + b * stride_qb + (node * stride_qn + (g * GROUP + m % GROUP) * stride_qh)[:, None] + d[None, :],
        mask=is_row[:, None], other=0.0,
    )  # fmt: skip
    best = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, D), tl.float32)
    k_ptr += b * stride_kb + g.to(tl.int64) * stride_kg
    v_ptr += b * stride_vb + g.to(tl.int64) * stride_vg
    for first in tl.range(begin, end, TILE):
        slot = first + tl.arange(0, TILE)
        k = tl.load(k_ptr + slot.to(tl.int64)[None, :] * stride_ks + d[:, None])
        v = tl.load(v_ptr + slot.to(tl.int64)[:, None] * stride_vs + d[None, :])
        score = tl.dot(q, k, input_precision="ieee") * scale_log2
        sees = (first < dense)[:, None]
        if WINDOW > 0:
            sees = sees & (slot[None, :] > (position - WINDOW)[:, None])
        best, total, acc = _join(best, total, acc, tl.where(sees, score, -float("inf")), v)
    to = ((b * G + g) * SPLITS + split) * M + m
    tl.store(part_ptr + to[:, None] * D + d[None, :], acc, mask=is_row[:, None])
    tl.store(stats_ptr + to * 2, best, mask=is_row)
    tl.store(stats_ptr + to * 2 + 1, total, mask=is_row)


@triton.jit
def tail_kernel(
    q_ptr, k_ptr, v_ptr, lengths_ptr, ancestors_ptr, part_ptr, stats_ptr, out_ptr, scale_log2,
    stride_qb, stride_qn, stride_qh, stride_kb, stride_kg, stride_ks, stride_vb, stride_vg, stride_vs, stride_ab,
    N: tl.constexpr, GROUP: tl.constexpr, G: tl.constexpr, D: tl.constexpr, WINDOW: tl.constexpr,
    SPLITS, SPLIT: tl.constexpr, REACH: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Program (node, key/value head, batch row): adds up the splits in order, then the tail; out [B, N, H, D]."""
    node, g = tl.program_id(0), tl.program_id(1)
    b = tl.program_id(2).to(tl.int64)
    length = tl.load(lengths_ptr + b)
    words_ptr = ancestors_ptr + b * stride_ab + node * 2
    low, high = tl.load(words_ptr), tl.load(words_ptr + 1)
    position = length + popcount(low) + popcount(high) - 1
    dense = tl.maximum(position - REACH, 0) // TILE * TILE
    d, r = tl.arange(0, D), tl.arange(0, ROWS)
    is_row = r < GROUP
    best = tl.full((ROWS,), -float("inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, D), tl.float32)
    for split in tl.range(0, (dense + SPLIT - 1) // SPLIT):
        at = ((b * G + g) * SPLITS + split) * (N * GROUP) + node * GROUP + r
        one = tl.load(stats_ptr + at * 2, mask=is_row, other=-float("inf"))
        top = tl.maximum(best, one)
        shift = tl.where(top == -float("inf"), 0.0, top)
        fade, share = tl.exp2(best - shift), tl.exp2(one - shift)
        part = tl.load(part_ptr + at[:, None] * D + d[None, :], mask=is_row[:, None], other=0.0)
        acc = acc * fade[:, None] + part * share[:, None]
        total = total * fade + tl.load(stats_ptr + at * 2 + 1, mask=is_row, other=0.0) * share
        best = top
    key = dense + tl.arange(0, REACH + TILE)  # positions of the tail's keys
    sees = key <= position
    if WINDOW > 0:
        sees = sees & (key > position - WINDOW)
    other = tl.arange(0, 64)
    is_ancestor = (tl.where(other < 32, low >> (other & 31), high >> (other & 31)) & 1) != 0
    depth = tl.cumsum(is_ancestor.to(tl.int32), 0) - 1  # of every ancestor: parents come before their children
    is_it = is_ancestor[None, :] & (depth[None, :] == (key - length)[:, None])
    slot = tl.where(key < length, key, length + tl.sum(tl.where(is_it, other[None, :], 0), 1)).to(tl.int64)
    k_ptr += b * stride_kb + g.to(tl.int64) * stride_kg
    v_ptr += b * stride_vb + g.to(tl.int64) * stride_vg
    q = tl.load(
        q_ptr + b * stride_qb + node * stride_qn + ((g * GROUP + r) * stride_qh)[:, None] + d[None, :],
        mask=is_row[:, None], other=0.0,
    )  # fmt: skip
    k = tl.load(k_ptr + slot[None, :] * stride_ks + d[:, None], mask=sees[None, :], other=0.0)
    v = tl.load(v_ptr + slot[:, None] * stride_vs + d[None, :], mask=sees[:, None], other=0.0)
    score = tl.where(sees[None, :], tl.dot(q, k, input_precision="ieee") * scale_log2, -float("inf"))
    best, total, acc = _join(best, total, acc, score, v)
    to = ((b * N + node) * (G * GROUP) + g * GROUP + r)[:, None] * D + d[None, :]
    tl.store(out_ptr + to, (acc / total[:, None]).to(out_ptr.dtype.element_ty), mask=is_row[:, None])


def tree_attention(
    q_BNHD: Tensor,
    k_BGSD: Tensor,
    v_BGSD: Tensor,
    lengths_B: Tensor,
    ancestors_RNW: Tensor,
    scale: float,
    window: int | None = None,
    split: int | None = None,
) -> Tensor:
    """reference.tree_attention. `split`: slots of a split, a multiple of TILE; None: split_size."""
    B, N, H, D = q_BNHD.shape
    G, S = k_BGSD.shape[1:3]
    split = split or split_size(S)
    assert H % G == 0 and H // G <= MOST_GROUP and N <= MOST_NODES and D in (16, 32, 64, 128), (H, G, N, D)
    assert split % TILE == 0 and lengths_B.dtype == ancestors_RNW.dtype == torch.int32
    assert q_BNHD.stride(3) == k_BGSD.stride(3) == v_BGSD.stride(3) == 1 and ancestors_RNW.is_contiguous()
    splits = triton.cdiv(S, split)
    part = q_BNHD.new_empty((B, G, splits, N * H // G, D), dtype=torch.float32)
    stats = q_BNHD.new_empty((B, G, splits, N * H // G, 2), dtype=torch.float32)
    out = q_BNHD.new_empty((B, N, H, D))
    tensors = (q_BNHD, k_BGSD, v_BGSD, lengths_B, ancestors_RNW, part, stats)
    strides = (
        *q_BNHD.stride()[:3], *k_BGSD.stride()[:3], *v_BGSD.stride()[:3],
        ancestors_RNW.stride(0) if len(ancestors_RNW) > 1 else 0,
    )  # fmt: skip
    sizes = dict(N=N, GROUP=H // G, G=G, D=D, WINDOW=window or 0, SPLITS=splits, SPLIT=split, REACH=REACH, TILE=TILE)
    blocks = triton.cdiv(N * H // G, BLOCK_M)
    prefix_kernel[(G * blocks, splits, B)](
        *tensors, scale * LOG2_E, *strides, **sizes, BLOCK_M=BLOCK_M, num_warps=4, num_stages=NUM_STAGES[D]
    )
    tail_kernel[(N, G, B)](*tensors, out, scale * LOG2_E, *strides, **sizes, ROWS=16, num_warps=4, num_stages=1)
    return out
