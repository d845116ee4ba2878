"""Rotary position embedding of the fast forward: one table for queries, keys and values.

Queries, keys and values are multiplied together, values with 1 and 0, so that what a cache takes is one piece.

Letters: B batch, N nodes, E head width.
"""

from typing import Any

import torch
from torch import Tensor


def rope_table(inner: Any, num_positions: int) -> Tensor:
    """[at least num_positions, 2, 2, E]: cosines, and sines with the sign of the half they go to; of heads that are
    rotated, and of those that stay as they are.

    `inner` is a transformers model with embed_tokens and rotary_emb. The table grows by doubling, so that longer texts
    seldom ask again.
    """
    num_positions = 1 << max(8, (num_positions - 1).bit_length())
    weight = inner.embed_tokens.weight
    positions = torch.arange(num_positions, device=weight.device)[None]
    cos, sin = inner.rotary_emb(torch.empty(0, dtype=weight.dtype, device=weight.device), positions)
    half = cos.shape[-1] // 2
    signed = torch.cat([-sin[..., :half], sin[..., half:]], -1)
    rotated = torch.stack([cos[0], signed[0]], 1)
    stays = torch.stack([torch.ones_like(cos[0]), torch.zeros_like(cos[0])], 1)
    return torch.stack([rotated, stays], 2)


def half_tables(inner: Any, num_positions: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of at least num_positions positions, float32 [T, E / 2] each, as the kernels take them.

    `inner` as in rope_table; T grows by doubling likewise.
    """
    num_positions = 1 << max(8, (num_positions - 1).bit_length())
    device = inner.embed_tokens.weight.device
    positions = torch.arange(num_positions, device=device)[None]
    cos, sin = inner.rotary_emb(torch.empty(0, dtype=torch.float32, device=device), positions)
    half = cos.shape[-1] // 2
    return cos[0, :, :half].float().contiguous(), sin[0, :, :half].float().contiguous()


def apply_rope(heads_BNXE: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates each head by its position; cos and sin are rows of rope_table, [1 or B, N, heads, E]."""
    return torch.addcmul(heads_BNXE * cos, heads_BNXE.roll(heads_BNXE.shape[-1] // 2, -1), sin)
