"""Matrices in the layout of the compiled products of a CPU (kernels/cpu/matrix.h): 4, 8, 16 or 32 bits.

16 bits are bfloat16, 32 are float32. Rows are brought to the form that a matrix is multiplied with in each call: 8
bits, bfloat16 or float32.

Letters: M rows, I inputs, O outputs, T tiles of 16 outputs, B blocks of 32 inputs, J groups of 4 inputs.
"""

import ctypes
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad

from euryale.kernels.cpu.compile import load_library
from euryale.kernels.few_bits import BLOCK, Blocks, to_blocks
from euryale.kernels.large_pages import LargePages
from euryale.kernels.packed_linear import LinearShape

TILE = 16
_CHUNK = 1 << 24  # numbers that are laid out at once


class CMatrix(ctypes.Structure):
    """struct Matrix of matrix.h."""

    _fields_ = [
        ("codes", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("inputs", ctypes.c_int32),
        ("outputs", ctypes.c_int32),
        ("bits", ctypes.c_int32),
    ]


class CpuMatrix:
    """A matrix [O, I] as the compiled products read it: 0.63 bytes a number in 4 bits, 1.13 in 8, then 2 and 4."""

    @torch.no_grad()
    def __init__(
        self, weight_OI: Tensor, bits: int, bias_O: Tensor | None = None, memory: LargePages | None = None
    ) -> None:
        """bits is 4, 8, 16 or 32. I is filled up with zeros to a multiple of 32, which is `num_inputs`.

        memory: where it lies, next to others; null: by itself.
        """
        weight_OI = filled(weight_OI, 1, weight_OI.shape[1], whole_blocks(weight_OI.shape[1]))
        self.num_outputs, self.num_inputs = weight_OI.shape
        chunks = weight_OI.detach().split(max(1, _CHUNK // self.num_inputs // TILE) * TILE)
        laid_out = (_laid_out(rows_OI, bits) for rows_OI in chunks)
        self._codes, self._scales = _joined(laid_out, -(-self.num_outputs // TILE), memory or LargePages())
        self._bias = None if bias_O is None else bias_O.detach().float().contiguous()
        self.c = CMatrix(
            self._codes.data_ptr(), self._scales.data_ptr(), None if self._bias is None else self._bias.data_ptr(),
            self.num_inputs, self.num_outputs, bits,
        )  # fmt: skip

    @property
    def num_bytes(self) -> int:
        return self._codes.nbytes + self._scales.nbytes


class CpuLinear:
    """x [..., I] -> x W^T + b [..., O], in the dtype of x."""

    shape: LinearShape | None = None  # rows never depend on each other: no counts need a proof

    def __init__(
        self, weight_OI: Tensor, bits: int, bias_O: Tensor | None = None, memory: LargePages | None = None
    ) -> None:
        """As CpuMatrix. Raises UserError where there is no C++ compiler."""
        self.weight, self._num_inputs = CpuMatrix(weight_OI, bits, bias_O, memory), weight_OI.shape[1]
        self._product = load_library().euryale_product

    def __call__(self, x_MI: Tensor) -> Tensor:
        assert x_MI.shape[-1] == self._num_inputs, f"rows of {self._num_inputs}; got {x_MI.shape[-1]}"
        wide_MI = x_MI.float().contiguous()
        y_MO = wide_MI.new_empty(*x_MI.shape[:-1], self.weight.num_outputs)
        self._product(
            ctypes.byref(self.weight.c), ctypes.c_void_p(wide_MI.data_ptr()), wide_MI.numel() // self._num_inputs,
            self._num_inputs, ctypes.c_void_p(y_MO.data_ptr()), torch.get_num_threads(),
        )  # fmt: skip
        return y_MO.to(x_MI.dtype)

    def onto(self, sum_MO: Tensor, x_MI: Tensor) -> Tensor:
        """sum + x W^T + b."""
        return sum_MO + self(x_MI)


def _laid_out(weight_OI: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Codes and scales, a tile first."""
    if bits == 32:
        return _wide(weight_OI.float()), torch.empty(0)
    if bits == 16:
        return _halves(weight_OI.bfloat16()), torch.empty(0)
    return _few_bits(to_blocks(weight_OI, bits), bits)


def _joined(parts: Iterator[tuple[Tensor, Tensor]], num_tiles: int, memory: LargePages) -> list[Tensor]:
    """Each of a pair of tensors whose parts come one after the other."""
    whole: list[Tensor] = []
    begin = 0
    for part in parts:
        whole = whole or [memory.empty((num_tiles, *x.shape[1:]) if len(x) else (0,), x.dtype) for x in part]
        end = begin + len(part[0])
        for to, x in zip(whole, part, strict=True):
            to[begin:end] = x
        begin = end
    return whole


def _wide(weight_OI: Tensor) -> Tensor:
    """[T, I, 16], as wide.h reads them; the last tile is filled with zeros."""
    filled_OI = pad(weight_OI, (0, 0, 0, -len(weight_OI) % TILE))
    return filled_OI.unflatten(0, (-1, TILE)).transpose(1, 2).contiguous()


def _halves(weight_OI: Tensor) -> Tensor:
    """[T, I / 2, 16, 2]: pairs of inputs, as half.h reads them; the last tile is filled with zeros."""
    filled_OI = pad(weight_OI, (0, 0, 0, -len(weight_OI) % TILE))
    return filled_OI.unflatten(0, (-1, TILE)).unflatten(2, (-1, 2)).transpose(1, 2).contiguous()


def _few_bits(blocks: Blocks, bits: int) -> tuple[Tensor, Tensor]:
    """Codes [T, B, bytes] and scales [T, B, 2, 16] in the order of few_bits.h; the last tile is filled with zeros."""
    missing = -len(blocks.codes_OBI) % TILE
    codes_OBI = pad(blocks.codes_OBI, (0, 0, 0, 0, 0, missing))
    codes_TBJ = codes_OBI.unflatten(0, (-1, TILE)).unflatten(3, (-1, 4)).permute(0, 2, 3, 1, 4)  # [T, B, J, 16, 4]
    if bits == 4:
        codes_TBJ = codes_TBJ[:, :, :4] | (codes_TBJ[:, :, 4:] << 4)
    both_OB = torch.stack([blocks.scales_OB, blocks.least_OB])
    scales_TB = pad(both_OB, (0, 0, 0, missing)).unflatten(1, (-1, TILE)).permute(1, 3, 0, 2)
    return codes_TBJ.flatten(2).contiguous(), scales_TB.contiguous()


def filled(x: Tensor, dim: int, unit: int, size: int) -> Tensor:
    """Each run of `unit` numbers along `dim` filled up to `size` with zeros."""
    if unit == size:
        return x
    runs = x.unflatten(dim, (-1, unit))
    return pad(runs, [0, 0] * (runs.ndim - dim - 2) + [0, size - unit]).flatten(dim, dim + 1)


def whole_blocks(count: int) -> int:
    """Numbers that whole blocks of 32 have."""
    return -(-count // BLOCK) * BLOCK
