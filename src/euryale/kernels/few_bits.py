"""Matrices in 4 or 8 bits for the products of a CPU (kernels/cpu/few_bits.h), and their specification in torch.

A matrix is divided into blocks of 32 inputs; a block has a scale and a least value in float16 and whole codes:
w = scale * code + least. That is Q4_1 of llama.cpp. Where it is nearer, a block has its zero at a code instead, as Q4_0
and Q8_0 have, so files in these three lose next to nothing.

Letters: M rows, I inputs, O outputs, T tiles of 16 outputs, B blocks of 32 inputs, J groups of 4 inputs.
"""

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from euryale.kernels.cpu.compile import load_library
from euryale.kernels.packed_linear import LinearShape

BLOCK, TILE = 32, 16
_CHUNK = 1 << 24  # numbers that are brought to few bits at once


class Blocks(NamedTuple):
    """A matrix in few bits, not laid out yet."""

    codes_OBI: Tensor  # uint8, [O, I / 32, 32]
    scales_OB: Tensor  # float16, as the next
    least_OB: Tensor

    def matrix(self) -> Tensor:
        """[O, I] in float32."""
        scales, least = self.scales_OB.float()[..., None], self.least_OB.float()[..., None]
        return (self.codes_OBI * scales + least).flatten(1)


class CMatrix(ctypes.Structure):
    """struct Matrix of few_bits.h."""

    _fields_ = [
        ("codes", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("inputs", ctypes.c_int32),
        ("outputs", ctypes.c_int32),
        ("bits", ctypes.c_int32),
    ]


class FewBits:
    """A matrix [O, I] as the compiled products read it: 0.63 bytes a number in 4 bits, 1.13 in 8."""

    def __init__(self, weight_OI: Tensor, bits: int, bias_O: Tensor | None = None) -> None:
        """I must be a multiple of 32; bits is 4 or 8."""
        self.num_outputs, self.num_inputs = weight_OI.shape
        self.bits = bits
        parts = [
            _laid_out(to_blocks(rows_OI, bits), bits)
            for rows_OI in weight_OI.split(max(1, _CHUNK // self.num_inputs // TILE) * TILE)
        ]
        self._codes, self._scales = (torch.cat(same) for same in zip(*parts, strict=True))
        self._bias = None if bias_O is None else bias_O.detach().float().contiguous()
        self.c = CMatrix(
            self._codes.data_ptr(), self._scales.data_ptr(), None if self._bias is None else self._bias.data_ptr(),
            self.num_inputs, self.num_outputs, bits,
        )  # fmt: skip

    @property
    def num_bytes(self) -> int:
        return self._codes.nbytes + self._scales.nbytes


class FewBitsLinear:
    """x [..., I] -> x W^T + b [..., O], in the dtype of x, from a matrix in few bits and rows in 8."""

    shape: LinearShape | None = None  # rows never depend on each other: no counts need a proof

    def __init__(self, weight_OI: Tensor, bits: int, bias_O: Tensor | None = None) -> None:
        """Raises UserError where there is no C++ compiler."""
        self.weight = FewBits(weight_OI, bits, bias_O)
        self._product = load_library().euryale_product

    def __call__(self, x_MI: Tensor) -> Tensor:
        assert x_MI.shape[-1] == self.weight.num_inputs, f"rows of {self.weight.num_inputs}; got {x_MI.shape[-1]}"
        wide_MI = x_MI.float().contiguous()
        y_MO = wide_MI.new_empty(*x_MI.shape[:-1], self.weight.num_outputs)
        self._product(
            ctypes.byref(self.weight.c), ctypes.c_void_p(wide_MI.data_ptr()), wide_MI.numel() // self.weight.num_inputs,
            ctypes.c_void_p(y_MO.data_ptr()), torch.get_num_threads(),
        )  # fmt: skip
        return y_MO.to(x_MI.dtype)

    def onto(self, sum_MO: Tensor, x_MI: Tensor) -> Tensor:
        """sum + x W^T + b."""
        return sum_MO + self(x_MI)


@torch.no_grad()
def to_blocks(weight_OI: Tensor, bits: int) -> Blocks:
    """The codes of a matrix, each block by the scale that comes nearer to it."""
    wide_OBI = weight_OI.detach().float().unflatten(1, (-1, BLOCK))
    low_OB, high_OB = wide_OBI.aminmax(dim=-1)
    top = 2**bits - 1
    found = _coded(wide_OBI, (high_OB - low_OB) / top, low_OB, top)
    far_OB = torch.where(high_OB > -low_OB, high_OB, low_OB)
    if bits == 4:  # the far end is code 0
        around_zero = _coded(wide_OBI, far_OB / -8, far_OB, top)
    else:  # codes from -127 to 127
        around_zero = _coded(wide_OBI, far_OB.abs() / 127, -far_OB.abs(), top)
    is_nearer_OB = _error(around_zero, wide_OBI) < _error(found, wide_OBI)
    return Blocks(
        torch.where(is_nearer_OB[..., None], around_zero.codes_OBI, found.codes_OBI),
        torch.where(is_nearer_OB, around_zero.scales_OB, found.scales_OB),
        torch.where(is_nearer_OB, around_zero.least_OB, found.least_OB),
    )


def _coded(wide_OBI: Tensor, scales_OB: Tensor, least_OB: Tensor, top: int) -> Blocks:
    scales_OB, least_OB = scales_OB.half(), least_OB.half()
    step_OB1 = torch.where(scales_OB == 0, 1, scales_OB).float()[..., None]
    codes = ((wide_OBI - least_OB.float()[..., None]) / step_OB1).round_().clamp_(0, top)
    return Blocks(codes.to(torch.uint8), scales_OB, least_OB)


def _error(blocks: Blocks, wide_OBI: Tensor) -> Tensor:
    return (blocks.matrix().view_as(wide_OBI) - wide_OBI).square_().sum(-1)


def _laid_out(blocks: Blocks, bits: int) -> tuple[Tensor, Tensor]:
    """Codes [T, B, bytes] and scales [T, B, 2, 16] in the order of few_bits.h; the last tile is filled with zeros."""
    missing = -len(blocks.codes_OBI) % TILE
    codes_OBI = pad(blocks.codes_OBI, (0, 0, 0, 0, 0, missing))
    codes_TBJ = codes_OBI.unflatten(0, (-1, TILE)).unflatten(3, (-1, 4)).permute(0, 2, 3, 1, 4)  # [T, B, J, 16, 4]
    if bits == 4:
        codes_TBJ = codes_TBJ[:, :, :4] | (codes_TBJ[:, :, 4:] << 4)
    both_OB = torch.stack([blocks.scales_OB, blocks.least_OB])
    scales_TB = pad(both_OB, (0, 0, 0, missing)).unflatten(1, (-1, TILE)).permute(1, 3, 0, 2)
    return codes_TBJ.flatten(2).contiguous(), scales_TB.contiguous()


def few_bits_product(x_MI: Tensor, blocks: Blocks) -> Tensor:
    """[M, O]: the specification of product() in few_bits.h. Rows are brought to 8 bits block by block."""
    wide_MBI = x_MI.double().unflatten(1, (-1, BLOCK))
    most_MB1 = wide_MBI.abs().amax(-1, keepdim=True)
    inverse_MB1 = torch.where(most_MB1 > 0, 127 / most_MB1, 0)
    rounded_MI = ((wide_MBI * inverse_MB1).round() * (most_MB1 / 127)).flatten(1)
    return rounded_MI @ blocks.matrix().double().T
