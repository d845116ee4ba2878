"""A 4-bit matrix as bitsandbytes stores it (NF4, with or without double quantisation), in the form that kernels take.

The tensors are bitsandbytes' own: nothing is copied or laid out anew.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from euryale.errors import UserError

NESTED_BLOCK = 256
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


def code_bits(dtype: torch.dtype) -> list[int]:
    """The codebook's bit patterns in bfloat16 or float16."""
    return [bits & 0xFFFF for bits in torch.tensor(NF4).to(dtype).view(torch.int16).tolist()]


class QuantState(Protocol):
    """What is read of bitsandbytes.functional.QuantState."""

    absmax: Tensor
    code: Tensor
    shape: torch.Size
    blocksize: int
    quant_type: str
    nested: bool
    offset: Tensor
    state2: "QuantState"


class Nf4Weight(NamedTuple):
    """A matrix [O, I] as bitsandbytes stores it: 4-bit codes in blocks of 64 inputs, each block with its absmax."""

    packed: Tensor  # uint8 [O * I / 2]: two neighbouring inputs a byte, the even one in the high nibble
    codebook: Tensor  # float32 [16]
    absmax: Tensor  # of each block: uint8 when nested, else float32
    nested_absmax: Tensor  # float32, of each NESTED_BLOCK of `absmax`; empty when not nested
    nested_codebook: Tensor  # float32 [256]; empty when not nested
    offset: Tensor  # float32 [1], added to a nested absmax
    num_outputs: int
    num_inputs: int
    block_size: int

    @property
    def is_nested(self) -> bool:
        return self.absmax.dtype == torch.uint8

    def scales(self) -> Tensor:
        """The absmax of every block, float32."""
        if not self.is_nested:
            return self.absmax
        index = torch.arange(len(self.absmax), device=self.absmax.device) // NESTED_BLOCK
        return self.nested_codebook[self.absmax.int()] * self.nested_absmax[index] + self.offset

    def matrix(self, dtype: torch.dtype) -> Tensor:
        """[O, I] in float32, of the codebook rounded to dtype."""
        packed = self.packed.view(-1).int()
        codes = torch.stack([packed >> 4, packed & 15], -1)
        blocks = self.codebook.to(dtype).float()[codes].view(-1, self.block_size)
        return (blocks * self.scales()[:, None]).view(self.num_outputs, self.num_inputs)


def nf4_weight(packed: Tensor, state: QuantState) -> Nf4Weight:
    """A weight of bitsandbytes and its quantisation state. Raises UserError for another kind of quantisation."""
    if state.quant_type != "nf4" or (state.nested and state.state2.blocksize != NESTED_BLOCK):
        raise UserError(
            f"nf4_linear: the quantisation must be nf4 with nested blocks of {NESTED_BLOCK}; got {state.quant_type}"
            f"{f' with {state.state2.blocksize}' if state.nested else ''}. Leave this layer to bitsandbytes."
        )
    none = state.absmax.new_empty(0, dtype=torch.float32)
    num_outputs, num_inputs = state.shape
    return Nf4Weight(
        packed=packed,
        codebook=state.code,
        absmax=state.absmax,
        nested_absmax=state.state2.absmax if state.nested else none,
        nested_codebook=state.state2.code if state.nested else none,
        offset=state.offset.float().reshape(1) if state.nested else none,
        num_outputs=num_outputs,
        num_inputs=num_inputs,
        block_size=state.blocksize,
    )
