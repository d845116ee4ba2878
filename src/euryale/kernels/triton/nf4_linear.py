"""y = x W^T (+ b) in Triton, with W in NF4 exactly as bitsandbytes stores it, for 1 to 32 rows of x.

W[o, i] = codebook[code] * absmax of the block of 64 inputs; nested: absmax = code2[absmax8] * absmax2 + offset. A
32-bit word holds eight neighbouring codes, and 64 inputs are eight words. Weights are the LEFT operand, so rows of x
are padded to 16 or 32 only, and decoded registers feed the tensor cores. Codes go into the product unscaled; a
block's absmax is multiplied onto its sums. Inputs of a block are taken in the order (byte, word, half), the same for
W and x.

Bytes: 0.516 a weight (nested), where dequantising to 16 bits first moves 0.5 + 2 + 2. Two stages: programs (BLOCK_O
outputs, part of the inputs) leave float32 sums, which add_up_kernel adds in order, hence no atomics: a row of y depends
on its row of x alone, and on ROWS, the padded number of rows.
Decoding is nf4_decode.py (PRMT) for 16-bit x on a GPU, and a look-up in memory for float32 and in the interpreter.
Limits: blocks of 64, I a multiple of 64, at most 32 rows.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from euryale.kernels.nf4_weight import Nf4Weight
from euryale.kernels.triton.nf4_decode import decode

BLOCK_O = 128
TYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}


@triton.jit
def _pair(word, T: tl.constexpr):
    """int32 [rows, words] of two values each -> T [rows, 2 * words], the low half first."""
    low = (word & 0xFFFF).to(tl.int16).to(T, bitcast=True)
    high = ((word >> 16) & 0xFFFF).to(tl.int16).to(T, bitcast=True)
    return tl.join(low, high).reshape(word.shape[0], 2 * word.shape[1])


@triton.jit
def parts_kernel(
    x_ptr, words_ptr, codebook_ptr, absmax_ptr, nested_absmax_ptr, nested_codebook_ptr, offset_ptr, part_ptr,
    OUTPUTS, M, INPUTS: tl.constexpr, ROWS: tl.constexpr, SPLITS: tl.constexpr, BLOCK_O: tl.constexpr,
    NESTED: tl.constexpr, PRMT: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """Program (block of outputs, split of the inputs): part [SPLITS, ROWS, OUTPUTS]."""
    o = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    inside = o < OUTPUTS
    m = tl.arange(0, ROWS)
    c = tl.arange(0, 8)
    pair = tl.arange(0, 16)
    blocks: tl.constexpr = INPUTS // 64
    share = tl.cdiv(blocks, SPLITS)
    begin = tl.program_id(1) * share
    acc = tl.zeros((BLOCK_O, ROWS), tl.float32)
    offset = tl.load(offset_ptr) if NESTED else 0.0
    x_ptr += m[None, :] * INPUTS + (pair // 2 * 8 + pair % 2)[:, None]
    row = tl.where(inside, o, 0).to(tl.int64)
    for block in tl.range(begin, tl.minimum(begin + share, blocks)):
        words = tl.load(words_ptr + row[:, None] * (INPUTS // 8) + block * 8 + c[None, :])
        if PRMT:
            w0, w1, w2, w3 = decode(words, T)
        p = tl.zeros((BLOCK_O, ROWS), tl.float32)
        for i in tl.static_range(4):
            x = tl.load(x_ptr + block * 64 + 2 * i, mask=(m < M)[None, :], other=0.0)
            if PRMT:
                w = _pair(w0 if i == 0 else w1 if i == 1 else w2 if i == 2 else w3, T)
            else:
                even = tl.load(codebook_ptr + ((words >> (8 * i + 4)) & 15)).to(T)
                odd = tl.load(codebook_ptr + ((words >> (8 * i)) & 15)).to(T)
                w = tl.join(even, odd).reshape(BLOCK_O, 16)
            p = tl.dot(w, x, p, input_precision="ieee")
        at = row * blocks + block
        if NESTED:
            scale = tl.load(nested_codebook_ptr + tl.load(absmax_ptr + at).to(tl.int32))
            scale = scale * tl.load(nested_absmax_ptr + at // 256) + offset
        else:
            scale = tl.load(absmax_ptr + at)
        acc += p * scale[:, None]
    to = part_ptr + (tl.program_id(1).to(tl.int64) * ROWS + m[None, :]) * OUTPUTS + o[:, None]
    tl.store(to, acc, mask=inside[:, None])


@triton.jit
def add_up_kernel(
    part_ptr,
    bias_ptr,
    y_ptr,
    OUTPUTS,
    ROWS: tl.constexpr,
    SPLITS: tl.constexpr,
    BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program (block of outputs, row)."""
    o, m = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.program_id(1)
    inside = o < OUTPUTS
    total = tl.zeros((BLOCK,), tl.float32)
    for split in tl.static_range(SPLITS):
        total += tl.load(part_ptr + (split * ROWS + m).to(tl.int64) * OUTPUTS + o, mask=inside, other=0.0)
    if BIAS:
        total += tl.load(bias_ptr + o, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + m.to(tl.int64) * OUTPUTS + o, total.to(y_ptr.dtype.element_ty), mask=inside)


def num_splits(num_outputs: int, num_inputs: int) -> int:
    """Parts of the inputs: enough programs for two on every multiprocessor, and four blocks of inputs in each at least.

    It depends on the matrix alone: AR and a tree add up in the same order.
    """
    splits = 1
    while triton.cdiv(num_outputs, BLOCK_O) * splits < 264 and num_inputs // 64 // (2 * splits) >= 4:
        splits *= 2
    return splits


def nf4_linear(
    x_MI: Tensor, weight: Nf4Weight, bias_O: Tensor | None = None, rows: int | None = None, splits: int | None = None
) -> Tensor:
    """reference.nf4_linear. `rows`: 16 or 32, the padded number of rows; None: the smallest that holds M.

    Equality between AR and a tree needs the same `rows` in both.
    """
    M, num_inputs = x_MI.shape
    num_outputs = weight.num_outputs
    rows = rows or (16 if M <= 16 else 32)
    assert M <= rows <= 32 and x_MI.is_contiguous(), (M, rows)
    assert num_inputs == weight.num_inputs and num_inputs % 64 == 0 and weight.block_size == 64, weight[6:]
    splits = splits or num_splits(num_outputs, num_inputs)
    part = x_MI.new_empty((splits, rows, num_outputs), dtype=torch.float32)
    y = x_MI.new_empty((M, num_outputs))
    parts_kernel[(triton.cdiv(num_outputs, BLOCK_O), splits)](
        x_MI, weight.packed.view(-1).view(torch.int32), weight.codebook, weight.absmax, weight.nested_absmax,
        weight.nested_codebook, weight.offset, part, num_outputs, M,
        INPUTS=num_inputs, ROWS=rows, SPLITS=splits, BLOCK_O=BLOCK_O, NESTED=weight.is_nested,
        PRMT=x_MI.is_cuda and x_MI.dtype != torch.float32, T=TYPES[x_MI.dtype], num_warps=4,
        num_stages=3 if rows == 16 else 2,
    )  # fmt: skip
    bias = y if bias_O is None else bias_O
    add_up_kernel[(triton.cdiv(num_outputs, 256), M)](
        part, bias, y, num_outputs, ROWS=rows, SPLITS=splits, BIAS=bias_O is not None, BLOCK=256, num_warps=4
    )
    return y
