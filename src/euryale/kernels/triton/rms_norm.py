"""RMS norm with the residual sum before it, in Triton.

total = x + residual; y = total / sqrt(mean(total^2) + eps) * weight.

Bytes: x and residual are read and total and y written once, 4 M C numbers in one launch, where torch's addition and
norm are two launches and 5 M C numbers. At the few rows of a step it is launches that count: two of them a layer
less. One row a program, summed in an order that does not depend on the other rows.
Shapes: x and residual [M, C] contiguous, weight [C]; any float type. Limits: C <= 16384.
"""

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def rms_norm_kernel(
    x_ptr, residual_ptr, weight_ptr, y_ptr, total_ptr, eps, C: tl.constexpr, BLOCK: tl.constexpr, ADD: tl.constexpr
):
    """Program (row)."""
    row = tl.program_id(0).to(tl.int64) * C
    c = tl.arange(0, BLOCK)
    inside = c < C
    x = tl.load(x_ptr + row + c, mask=inside, other=0.0)
    if ADD:
        x = x + tl.load(residual_ptr + row + c, mask=inside, other=0.0)
        tl.store(total_ptr + row + c, x, mask=inside)
    wide = x.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, 0) / C + eps)
    weight = tl.load(weight_ptr + c, mask=inside, other=0.0)
    tl.store(y_ptr + row + c, (wide * scale).to(x.dtype) * weight, mask=inside)


def rms_norm(x_MC: Tensor, weight_C: Tensor, eps: float, residual_MC: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """reference.rms_norm."""
    M, C = x_MC.shape
    assert C <= 16384 and x_MC.is_contiguous() and (residual_MC is None or residual_MC.is_contiguous()), C
    y_MC = x_MC.new_empty((M, C))
    total_MC = x_MC if residual_MC is None else x_MC.new_empty((M, C))
    residual = x_MC if residual_MC is None else residual_MC
    block = triton.next_power_of_2(C)
    rms_norm_kernel[(M,)](
        x_MC, residual, weight_C, y_MC, total_MC, eps, C=C, BLOCK=block, ADD=residual_MC is not None,
        num_warps=min(8, max(1, block // 512)),
    )  # fmt: skip
    return y_MC, total_MC
