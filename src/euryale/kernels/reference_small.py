"""Specification, second part: what a step does between the large products (see reference.py).

Letters as in reference.py; C the width of the residual stream, F the width of the feed-forward layer.
"""

import torch
from torch import Tensor

from euryale.kernels.reference import MASK32


def rms_norm(x_MC: Tensor, weight_C: Tensor, eps: float, residual_MC: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(norm of x + residual, x + residual), both in x's dtype: x / sqrt(mean(x^2) + eps) * weight.

    The quotient is rounded to x's dtype before it is multiplied, as in transformers' Llama.
    """
    total_MC = x_MC if residual_MC is None else x_MC + residual_MC
    wide_MC = total_MC.float()
    unit_MC = wide_MC * torch.rsqrt(wide_MC.square().mean(-1, keepdim=True) + eps)
    return unit_MC.to(x_MC.dtype) * weight_C, total_MC


def swiglu(gate_up_M2F: Tensor) -> Tensor:
    """silu(first half) * second half, [M, F]; silu is rounded to the inputs' dtype first, as in transformers' Llama."""
    gate_MF, up_MF = gate_up_M2F.chunk(2, -1)
    return torch.nn.functional.silu(gate_MF.float()).to(gate_MF.dtype) * up_MF


def kv_write(
    qkv_BNHD: Tensor,
    cos_TE: Tensor,
    sin_TE: Tensor,
    lengths_B: Tensor,
    depths_RN: Tensor,
    k_BGSD: Tensor,
    v_BGSD: Tensor,
    norms: tuple[Tensor, Tensor, float] | None = None,
) -> Tensor:
    """Turns queries and keys to their positions, and writes keys and values into the cache; the queries [B, N, H, D].

    qkv_BNHD: [B, N, H + 2 G, D], queries first, then keys, then values. cos_TE and sin_TE: float32, of positions
    0 to T - 1, [T, D / 2]; a row's node is at position lengths_B + depths_RN, and in slot lengths_B + node.
    `norms`: weights [D] of a norm of queries and of keys, and its eps (Qwen3); None: there is none.
    """
    B, N = qkv_BNHD.shape[:2]
    G, D = k_BGSD.shape[1], k_BGSD.shape[3]
    heads, values = qkv_BNHD[:, :, :-G], qkv_BNHD[:, :, -G:]
    if norms is not None:
        q_weight, k_weight, eps = norms
        heads = torch.cat(
            [rms_norm(heads[:, :, :-G], q_weight, eps)[0], rms_norm(heads[:, :, -G:], k_weight, eps)[0]], 2
        )
    positions_BN = (lengths_B[:, None] + depths_RN).long()
    cos, sin = cos_TE[positions_BN][:, :, None], sin_TE[positions_BN][:, :, None]
    first, second = heads.float().split(D // 2, -1)
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(qkv_BNHD.dtype)
    rows_B1 = torch.arange(B, device=qkv_BNHD.device)[:, None]
    slots_BN = (lengths_B[:, None] + torch.arange(N, device=qkv_BNHD.device)).long()
    k_BGSD[rows_B1, :, slots_BN] = turned[:, :, -G:].to(k_BGSD.dtype)
    v_BGSD[rows_B1, :, slots_BN] = values.to(v_BGSD.dtype)
    return turned[:, :, :-G].contiguous()


def top_k(scores_MV: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """The `num` best scores of each row, float32, best first, and their ids; of equal scores the lowest id first."""
    values_MV, ids_MV = scores_MV.float().sort(dim=-1, descending=True, stable=True)
    return values_MV[:, :num].contiguous(), ids_MV[:, :num].contiguous()


def draw(scores_MV: Tensor, temperature_M: Tensor, seeds_M: Tensor, positions_M: Tensor) -> Tensor:
    """The base's own token in each row, [M] int64: argmax(scores / T + noise of the row's key); ties to the lowest id.

    A row at T = 0 is greedy: it has no noise. positions_M is the position that the token takes.
    """
    is_drawn_M1 = (temperature_M > 0)[:, None]
    warm_MV = scores_MV.float() / torch.where(is_drawn_M1, temperature_M[:, None], 1.0)
    noise_MV = gumbel_noise(seeds_M, positions_M, scores_MV.shape[1])
    return torch.where(is_drawn_M1, warm_MV + noise_MV, warm_MV).max(-1).indices


def gumbel_noise(seeds_M: Tensor, positions_M: Tensor, vocab_size: int) -> Tensor:
    """Standard Gumbel noise [M, V], float32, a pure function of (seed, position, token id).

    seeds_M: int64 from 0 to 2^63 - 1. Equals what the decoder makes by torch (noise.fill_by_torch), bit for bit: two
    uses of one hash. float64 inside, because float32 has no room for the uniform numbers next to 1 that win the argmax.
    """
    keys_M = _mix(seeds_M & MASK32) ^ _mix((seeds_M >> 32) + 0x9E3779B9 & MASK32)
    rows_M = _mix(_mix(positions_M.long() + 0x85EBCA6B & MASK32) ^ keys_M)
    tokens_V = _mix(torch.arange(vocab_size, device=seeds_M.device) + 0x27D4EB2F & MASK32)
    uniform_MV = (_mix(_mix(rows_M[:, None] ^ tokens_V)).double() + 0.5) / 2**32
    return -(-uniform_MV.log()).log().float()


def _mix(x: Tensor) -> Tensor:
    """lowbias32 of C. Wellons' hash prospector: a bijection of 32-bit integers, held in int64."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & MASK32
    x = ((x ^ (x >> 15)) * 0x846CA68B) & MASK32
    return x ^ (x >> 16)
