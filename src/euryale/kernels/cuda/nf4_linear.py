"""Launches nf4_linear.cu. Takes bfloat16 x of 1 to 32 rows, blocks of 64, inputs in multiples of 64, even outputs."""

import ctypes
from functools import cache

import torch
from torch import Tensor

from euryale.kernels.cuda.module import Module, load, pointer
from euryale.kernels.nf4_weight import Nf4Weight, code_bits

OUTPUTS = 64  # of a block of threads
THREADS = 256
TABLE_BYTES = 65536


class _Weight(ctypes.Structure):
    _fields_ = [
        *(
            (name, ctypes.c_void_p)
            for name in ("packed", "pairs", "absmax", "nested_absmax", "nested_codebook", "offset")
        ),
        *((name, ctypes.c_int) for name in ("num_outputs", "num_inputs", "is_nested")),
    ]


@cache
def _pairs(device: torch.device) -> Tensor:
    """int32 [256]: the two bfloat16 values of every byte, the high nibble's in the low half."""
    bits = torch.tensor(code_bits(torch.bfloat16), dtype=torch.int64)
    byte = torch.arange(256)
    both = bits[byte >> 4] | bits[byte & 15] << 16
    return torch.where(both >= 2**31, both - 2**32, both).int().to(device)


def num_splits(num_outputs: int, num_inputs: int) -> int:
    """Parts of the inputs: enough blocks for two on every multiprocessor, and two turns of each warp at least.

    It depends on the matrix alone: AR and a tree add up in the same order.
    """
    splits = 1
    while -(-num_outputs // OUTPUTS) * splits < 264 and num_inputs // 64 // (2 * splits) >= 8:
        splits *= 2
    return splits


def nf4_linear(
    x_MI: Tensor,
    weight: Nf4Weight,
    bias_O: Tensor | None = None,
    splits: int | None = None,
    module: Module | None = None,
) -> Tensor:
    """reference.nf4_linear."""
    M, num_inputs = x_MI.shape
    num_outputs = weight.num_outputs
    assert 1 <= M <= 32 and x_MI.dtype == torch.bfloat16 and x_MI.is_contiguous(), (M, x_MI.dtype)
    assert num_inputs == weight.num_inputs and num_inputs % 64 == 0 and weight.block_size == 64, weight[6:]
    assert num_outputs % 2 == 0 and x_MI.data_ptr() % 16 == 0 and weight.packed.data_ptr() % 16 == 0, num_outputs
    splits = splits or num_splits(num_outputs, num_inputs)
    part = x_MI.new_empty((splits, M, num_outputs), dtype=torch.float32)
    y = x_MI.new_empty((M, num_outputs))
    tensors = (
        weight.packed,
        _pairs(x_MI.device),
        weight.absmax,
        weight.nested_absmax,
        weight.nested_codebook,
        weight.offset,
    )
    record = _Weight(*(x.data_ptr() for x in tensors), num_outputs, num_inputs, int(weight.is_nested))
    kernels = module or load("nf4_linear", x_MI.device)
    rows = 8 if M <= 8 else 16 if M <= 16 else 32
    kernels.launch(
        f"parts_{rows}", (-(-num_outputs // OUTPUTS), splits, 1), (THREADS, 1, 1),
        (pointer(x_MI), record, pointer(part), ctypes.c_int(M)), TABLE_BYTES,
    )  # fmt: skip
    bias = ctypes.c_void_p(None if bias_O is None else bias_O.data_ptr())
    sizes = (ctypes.c_int(M * num_outputs), ctypes.c_int(num_outputs), ctypes.c_int(splits))
    kernels.launch("add_up", (-(-M * num_outputs // 512), 1, 1), (256, 1, 1), (pointer(part), bias, pointer(y), *sizes))
    return y
