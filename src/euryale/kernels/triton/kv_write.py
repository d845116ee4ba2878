"""Rope and cache write in Triton: what lies between the fused projection and attention, in one launch.

For each node and head: (norm of Qwen3, then) rope, y = (a cos - b sin, b cos + a sin) of the halves a and b of a head
at the node's position; queries go out, keys and values into the cache at slot length + node.

Replaces, a layer: split, two turns of four operations, two index writes (and two norms): about a dozen launches of a
few microseconds for (H + 2 G) D N numbers, which are read and written once here.
The number of nodes is no constant of the code: prompts of another length compile nothing.
Shapes: those of reference.kv_write; any strides of q, k, v with a last one of 1. Limits: an even D up to 256.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _unit(first, second, weight_ptr, e, inside, eps, E: tl.constexpr):
    """RMS norm of one head in two halves, rounded as reference.rms_norm rounds."""
    wide_first, wide_second = first.to(tl.float32), second.to(tl.float32)
    mean = (tl.sum(wide_first * wide_first, 0) + tl.sum(wide_second * wide_second, 0)) / (2 * E)
    scale = tl.rsqrt(mean + eps)
    first_weight = tl.load(weight_ptr + e, mask=inside, other=0.0)
    second_weight = tl.load(weight_ptr + E + e, mask=inside, other=0.0)
    return (wide_first * scale).to(first.dtype) * first_weight, (wide_second * scale).to(first.dtype) * second_weight


@triton.jit
def kv_write_kernel(
    qkv_ptr, cos_ptr, sin_ptr, lengths_ptr, depths_ptr, out_ptr, k_ptr, v_ptr, q_norm_ptr, k_norm_ptr, eps,
    stride_xb, stride_xn, stride_xh, stride_dr, stride_kb, stride_kg, stride_ks, stride_vb, stride_vg, stride_vs,
    H: tl.constexpr, G: tl.constexpr, E: tl.constexpr, BLOCK_E: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """Program (node, head of queries, keys or values, batch row)."""
    node, h = tl.program_id(0), tl.program_id(1)
    b = tl.program_id(2).to(tl.int64)
    e = tl.arange(0, BLOCK_E)
    inside = e < E
    x_ptr = qkv_ptr + b * stride_xb + node * stride_xn + h * stride_xh
    first, second = tl.load(x_ptr + e, mask=inside, other=0.0), tl.load(x_ptr + E + e, mask=inside, other=0.0)
    length = tl.load(lengths_ptr + b)
    slot = (length + node).to(tl.int64)
    if h >= H + G:
        v_ptr += b * stride_vb + (h - H - G).to(tl.int64) * stride_vg + slot * stride_vs
        tl.store(v_ptr + e, first.to(v_ptr.dtype.element_ty), mask=inside)
        tl.store(v_ptr + E + e, second.to(v_ptr.dtype.element_ty), mask=inside)
        return
    if NORM:
        if h < H:
            first, second = _unit(first, second, q_norm_ptr, e, inside, eps, E)
        else:
            first, second = _unit(first, second, k_norm_ptr, e, inside, eps, E)
    position = (length + tl.load(depths_ptr + b * stride_dr + node)).to(tl.int64)
    cos = tl.load(cos_ptr + position * E + e, mask=inside, other=0.0)
    sin = tl.load(sin_ptr + position * E + e, mask=inside, other=0.0)
    a, c = first.to(tl.float32), second.to(tl.float32)
    turned_first, turned_second = (a * cos - c * sin).to(first.dtype), (c * cos + a * sin).to(first.dtype)
    if h < H:
        out_ptr += ((b * tl.num_programs(0) + node) * H + h) * (2 * E)
        tl.store(out_ptr + e, turned_first, mask=inside)
        tl.store(out_ptr + E + e, turned_second, mask=inside)
    else:
        k_ptr += b * stride_kb + (h - H).to(tl.int64) * stride_kg + slot * stride_ks
        tl.store(k_ptr + e, turned_first.to(k_ptr.dtype.element_ty), mask=inside)
        tl.store(k_ptr + E + e, turned_second.to(k_ptr.dtype.element_ty), mask=inside)


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
    """reference.kv_write."""
    B, N, heads, D = qkv_BNHD.shape
    G = k_BGSD.shape[1]
    H = heads - 2 * G
    assert D % 2 == 0 and D <= 256 and qkv_BNHD.stride(3) == k_BGSD.stride(3) == v_BGSD.stride(3) == 1, D
    assert cos_TE.is_contiguous() and sin_TE.is_contiguous() and depths_RN.is_contiguous()
    assert lengths_B.dtype == depths_RN.dtype == torch.int32 and cos_TE.dtype == sin_TE.dtype == torch.float32
    q_norm, k_norm, eps = norms or (qkv_BNHD, qkv_BNHD, 0.0)
    out = qkv_BNHD.new_empty((B, N, H, D))
    kv_write_kernel[(N, heads, B)](
        qkv_BNHD, cos_TE, sin_TE, lengths_B, depths_RN, out, k_BGSD, v_BGSD, q_norm, k_norm, eps,
        *qkv_BNHD.stride()[:3], depths_RN.stride(0) if len(depths_RN) > 1 else 0,
        *k_BGSD.stride()[:3], *v_BGSD.stride()[:3],
        H=H, G=G, E=D // 2, BLOCK_E=triton.next_power_of_2(D // 2), NORM=norms is not None, num_warps=1,
    )  # fmt: skip
    return out
