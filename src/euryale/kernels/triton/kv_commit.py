"""KV commit in Triton: the accepted nodes of all layers move to the front of a row's slots, in place, in one launch.

Slot start + i takes what lies in slot start + path[i]; path[i] >= i because parents come before their children. A
program owns one key/value head of one row and layer: it loads all that moves, waits, then stores, so no order of
programs or threads can overwrite what is still to be read. Where the path is the chain 0, 1, 2, ... nothing moves.

Bytes: 2 * 2 * P * D * L * G numbers at most, a few hundred KB for an 8B model: the launch costs more. Saved are two
index operations a layer, or one gather that copies every layer through a temporary.
Shapes: kv [2 L, B, G, S, D] of any strides with a last one of 1; any D. Limits: paths of at most 64 nodes.
"""

import triton
import triton.language as tl
from torch import Tensor

from euryale.kernels.reference import Walk


@triton.jit
def kv_commit_kernel(
    kv_ptr, paths_ptr, starts_ptr, counts_ptr, stride_l, stride_b, stride_g, stride_s,
    P: tl.constexpr, BLOCK_P: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Program (key/value head, batch row, layer x 2)."""
    b = tl.program_id(1)
    i, d = tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_D)
    path = tl.load(paths_ptr + b * P + i, mask=i < P, other=0)
    moves = (i < tl.load(counts_ptr + b)) & (path != i)
    if tl.sum(moves.to(tl.int32), 0) == 0:
        return
    kv_ptr += tl.program_id(2).to(tl.int64) * stride_l + b.to(tl.int64) * stride_b
    kv_ptr += tl.program_id(0).to(tl.int64) * stride_g + tl.load(starts_ptr + b).to(tl.int64) * stride_s
    mask = moves[:, None] & (d < D)[None, :]
    held = tl.load(kv_ptr + path.to(tl.int64)[:, None] * stride_s + d[None, :], mask=mask)
    tl.debug_barrier()  # Triton orders no loads and stores of different warps to the same memory
    tl.store(kv_ptr + i.to(tl.int64)[:, None] * stride_s + d[None, :], held, mask=mask)


def kv_commit(kv_LBGSD: Tensor, walk: Walk) -> None:
    """reference.kv_commit."""
    L2, B, G, _, D = kv_LBGSD.shape
    P = walk.paths_BP.shape[1]
    assert P <= 64 and kv_LBGSD.stride(4) == 1 and walk.paths_BP.is_contiguous(), (P, kv_LBGSD.stride())
    kv_commit_kernel[(G, B, L2)](
        kv_LBGSD, *walk, *kv_LBGSD.stride()[:4],
        P=P, BLOCK_P=max(2, triton.next_power_of_2(P)), D=D, BLOCK_D=triton.next_power_of_2(D), num_warps=4,
    )  # fmt: skip
