"""Top-k in Triton, in two stages: the best of every tile of a row, then the best of those.

A score and its id are one int64 key (bits.sort_key), so that "greater score, then lower id" is one comparison and the
stages need no second array. k passes of max and strike out over a tile in registers; a tile is read once.

Bytes: the scores once; k keys a tile between the stages. torch.topk takes several passes of radix select over a wide
vocabulary and does not say which of equal scores comes first.
Shapes: scores [M, V] contiguous, any float type; values float32 and ids int64 [M, k]. Limits: k <= 32, V < 2^31.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from euryale.kernels.triton.bits import LEAST_KEY, key_index, key_score, sort_key

TILE = 2048


@triton.jit
def tiles_kernel(scores_ptr, keys_ptr, V, K: tl.constexpr, TILE: tl.constexpr):
    """Program (row, tile): keys [M, tiles, K]."""
    row, tile = tl.program_id(0), tl.program_id(1)
    index = tile * TILE + tl.arange(0, TILE)
    inside = index < V
    score = tl.load(scores_ptr + row.to(tl.int64) * V + index, mask=inside, other=0.0).to(tl.float32)
    key = tl.where(inside, sort_key(score, index), LEAST_KEY)
    to = keys_ptr + (row.to(tl.int64) * tl.num_programs(1) + tile) * K
    for i in tl.static_range(K):
        best = tl.max(key, 0)
        tl.store(to + i, best)
        key = tl.where(key == best, LEAST_KEY, key)


@triton.jit
def join_kernel(keys_ptr, values_ptr, ids_ptr, NUM: tl.constexpr, BLOCK: tl.constexpr, K: tl.constexpr):
    """Program (row): the K best of NUM keys, best first."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    key = tl.load(keys_ptr + row * NUM + i, mask=i < NUM, other=LEAST_KEY)
    for k in tl.static_range(K):
        best = tl.max(key, 0)
        tl.store(values_ptr + row * K + k, key_score(best))
        tl.store(ids_ptr + row * K + k, key_index(best))
        key = tl.where(key == best, LEAST_KEY, key)


def top_k(scores_MV: Tensor, num: int, tile: int = TILE) -> tuple[Tensor, Tensor]:
    """reference.top_k."""
    M, V = scores_MV.shape
    assert 1 <= num <= min(32, V) and scores_MV.is_contiguous(), (num, V)
    tiles = triton.cdiv(V, tile)
    keys = scores_MV.new_empty((M, tiles, num), dtype=torch.int64)
    values, ids = scores_MV.new_empty((M, num), dtype=torch.float32), scores_MV.new_empty((M, num), dtype=torch.int64)
    tiles_kernel[(M, tiles)](scores_MV, keys, V, K=num, TILE=tile, num_warps=8)
    block = triton.next_power_of_2(tiles * num)
    join_kernel[(M,)](keys, values, ids, NUM=tiles * num, BLOCK=max(2, block), K=num, num_warps=4)
    return values, ids
