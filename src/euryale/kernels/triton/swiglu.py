"""SwiGLU in Triton: silu(gate) * up of a fused gate_up projection, y = g / (1 + exp(-g)) * u.

Bytes: gate and up are read and y written once, 3 M F numbers in one launch, where silu and the product are two launches
and 5 M F numbers.
Shapes: gate_up [M, 2 F] contiguous, any float type. Limits: none.
"""

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit
def swiglu_kernel(gate_up_ptr, y_ptr, F, BLOCK: tl.constexpr):
    """Program (row, block of columns)."""
    row = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = f < F
    gate = tl.load(gate_up_ptr + row * 2 * F + f, mask=inside, other=0.0)
    up = tl.load(gate_up_ptr + row * 2 * F + F + f, mask=inside, other=0.0)
    wide = gate.to(tl.float32)
    tl.store(y_ptr + row * F + f, (wide / (1.0 + tl.exp(-wide))).to(gate.dtype) * up, mask=inside)


def swiglu(gate_up_M2F: Tensor) -> Tensor:
    """reference.swiglu."""
    M, F = gate_up_M2F.shape[0], gate_up_M2F.shape[1] // 2
    assert gate_up_M2F.is_contiguous() and gate_up_M2F.shape[1] % 2 == 0, gate_up_M2F.shape
    y_MF = gate_up_M2F.new_empty((M, F))
    swiglu_kernel[(M, triton.cdiv(F, BLOCK))](gate_up_M2F, y_MF, F, BLOCK=BLOCK, num_warps=4)
    return y_MF
