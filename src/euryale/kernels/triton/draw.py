"""Draws the base's own token in every row, in Triton: argmax(scores / T + keyed Gumbel noise), ties to the lowest id.

Noise is a hash of (seed, position, token id), made in registers where it is added: noise of the shape of the logits
never exists. Rows at T = 0 have none. Two stages as in top_k: the best key of every tile, then the best of those.

Bytes: the scores once; without the fusion the noise is written and read once more (float32, M V each way) after about
twelve passes in int64 and float64. The hash is 32-bit integer work; the two logarithms are float64 as in the
specification, so the noise differs from it by the last bit of a float64 logarithm at most before it is rounded.
Shapes: those of reference.draw; scores contiguous. Limits: V < 2^31.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from euryale.kernels.triton.bits import LEAST_KEY, key_index, sort_key

TILE = 2048


@triton.jit
def mix(x):
    """lowbias32 on uint32."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def gumbel(seed, position, token):
    """reference.gumbel_noise: seed int64, position and token int32; float32."""
    key = mix(seed.to(tl.uint32)) ^ mix((seed >> 32).to(tl.uint32) + tl.cast(0x9E3779B9, tl.uint32))
    row = mix(mix(position.to(tl.uint32) + tl.cast(0x85EBCA6B, tl.uint32)) ^ key)
    hashed = mix(mix(mix(token.to(tl.uint32) + tl.cast(0x27D4EB2F, tl.uint32)) ^ row))
    uniform = (hashed.to(tl.float64) + 0.5) * 2.3283064365386963e-10  # 2^-32, exactly
    return (-tl.log(-tl.log(uniform))).to(tl.float32)


@triton.jit
def tiles_kernel(scores_ptr, temperature_ptr, seeds_ptr, positions_ptr, keys_ptr, V, TILE: tl.constexpr):
    """Program (row, tile): the tile's best key, keys [M, tiles]."""
    row, tile = tl.program_id(0), tl.program_id(1)
    index = tile * TILE + tl.arange(0, TILE)
    inside = index < V
    score = tl.load(scores_ptr + row.to(tl.int64) * V + index, mask=inside, other=0.0).to(tl.float32)
    temperature = tl.load(temperature_ptr + row)
    if temperature > 0.0:
        noise = gumbel(tl.load(seeds_ptr + row), tl.load(positions_ptr + row), index)
        score = tl.div_rn(score, temperature) + noise
    key = tl.where(inside, sort_key(score, index), LEAST_KEY)
    tl.store(keys_ptr + row.to(tl.int64) * tl.num_programs(1) + tile, tl.max(key, 0))


@triton.jit
def join_kernel(keys_ptr, tokens_ptr, NUM: tl.constexpr, BLOCK: tl.constexpr):
    """Program (row): the id of the best key."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    key = tl.load(keys_ptr + row * NUM + i, mask=i < NUM, other=LEAST_KEY)
    tl.store(tokens_ptr + row, key_index(tl.max(key, 0)))


def draw(scores_MV: Tensor, temperature_M: Tensor, seeds_M: Tensor, positions_M: Tensor, tile: int = TILE) -> Tensor:
    """reference.draw."""
    M, V = scores_MV.shape
    keys_of_rows = (temperature_M, seeds_M, positions_M)
    assert scores_MV.is_contiguous() and all(x.shape == (M,) and x.is_contiguous() for x in keys_of_rows)
    assert temperature_M.dtype == torch.float32 and seeds_M.dtype == torch.int64, (temperature_M.dtype, seeds_M.dtype)
    tiles = triton.cdiv(V, tile)
    keys, tokens = scores_MV.new_empty((M, tiles), dtype=torch.int64), scores_MV.new_empty(M, dtype=torch.int64)
    tiles_kernel[(M, tiles)](scores_MV, *keys_of_rows, keys, V, TILE=tile, num_warps=8)
    join_kernel[(M,)](keys, tokens, NUM=tiles, BLOCK=max(2, triton.next_power_of_2(tiles)), num_warps=1)
    return tokens
