"""Matrices in 4 or 8 bits, and the specification of their product (kernels/cpu/few_bits.h) in torch.

A matrix is divided into blocks of 32 inputs; a block has a scale and a least value in float16 and whole codes:
w = scale * code + least. That is Q4_1 of llama.cpp. Where it is nearer, a block has its zero at a code instead, as Q4_0
and Q8_0 have, so files in these three lose next to nothing.

Letters: M rows, I inputs, O outputs, B blocks of 32 inputs.
"""

from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 32


class Blocks(NamedTuple):
    """A matrix in few bits, not laid out yet."""

    codes_OBI: Tensor  # uint8, [O, I / 32, 32]
    scales_OB: Tensor  # float16, as the next
    least_OB: Tensor

    def matrix(self) -> Tensor:
        """[O, I] in float32."""
        scales, least = self.scales_OB.float()[..., None], self.least_OB.float()[..., None]
        return (self.codes_OBI * scales + least).flatten(1)


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


def few_bits_product(x_MI: Tensor, blocks: Blocks) -> Tensor:
    """[M, O]: the specification of product() in few_bits.h. Rows are brought to 8 bits block by block."""
    wide_MBI = x_MI.double().unflatten(1, (-1, BLOCK))
    most_MB1 = wide_MBI.abs().amax(-1, keepdim=True)
    inverse_MB1 = torch.where(most_MB1 > 0, 127 / most_MB1, 0)
    rounded_MI = ((wide_MBI * inverse_MB1).round() * (most_MB1 / 127)).flatten(1)
    return rounded_MI @ blocks.matrix().double().T
