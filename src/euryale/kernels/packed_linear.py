"""Products of a few rows with a matrix that never changes.

A step of decoding multiplies between one and some dozen rows with every matrix of the base. On a CPU the plain
product lays the matrix out anew each time, which costs more than the product itself; oneDNN can do that once. Measured
on two vCPUs (Zen 5, float32) for all matrices of the bundled base: plain 3.6 ms at one row and 6.2 at eight, laid out
once 2.5 and 2.8. Each call costs some 15 microseconds more, so small matrices stay with the plain product.

The copy in oneDNN's layout takes as much memory as the matrix, so it is made only where there is room. A module that
is not a plain linear layer (4-bit, LoRA) is asked itself.

Letters: M rows, I inputs, O outputs.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from euryale.system.memory import free_bytes


class LinearShape(NamedTuple):
    """What decides which kernel multiplies, but for the number of rows."""

    kind: type["PackedLinear"] | type["PlainLinear"]
    num_inputs: int
    num_outputs: int
    dtype: torch.dtype
    has_bias: bool


class Linear(Protocol):
    """x [M, I] -> x W^T + b [M, O].

    shape: what decides the kernel (see row_blocks.py); None: not known.
    """

    @property
    def shape(self) -> "LinearShape | None": ...
    def __call__(self, x_MI: Tensor) -> Tensor: ...
    def onto(self, sum_MO: Tensor, x_MI: Tensor) -> Tensor:
        """sum + x W^T + b, in one operation where there is one."""
        ...


_WORTH_IT = 1 << 17  # numbers in a float32 matrix from which the quicker product pays for its call
_ROWS_HINT = 4  # the layout differs for 1 row and for more; this one is quick for 1 to 16


class PackedLinear:
    """x [M, I] -> x W^T + b [M, O], with W [O, I] in oneDNN's own layout. Not for training."""

    @torch.no_grad()
    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        self.shape = LinearShape(PackedLinear, weight_OI.shape[1], len(weight_OI), weight_OI.dtype, bias_O is not None)
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight_OI.detach(), _ROWS_HINT)
        self._bias = None if bias_O is None else bias_O.detach()
        self._product: Any = torch.ops.mkldnn._linear_pointwise.default  # the overload itself: no lookup a call
        self._product_onto: Any = torch.ops.mkldnn._linear_pointwise.binary

    def __call__(self, x_MI: Tensor) -> Tensor:
        return self._product(x_MI, self._weight, self._bias, "none", [], "")

    def onto(self, sum_MO: Tensor, x_MI: Tensor) -> Tensor:
        return self._product_onto(x_MI, sum_MO, self._weight, self._bias, "add")


class PlainLinear:
    """The same over a matrix as it is."""

    @torch.no_grad()
    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        self.shape = LinearShape(PlainLinear, weight_OI.shape[1], len(weight_OI), weight_OI.dtype, bias_O is not None)
        self._weight = weight_OI.detach()
        self._weight_IO = self._weight.t()
        self._bias = None if bias_O is None else bias_O.detach()

    def __call__(self, x_MI: Tensor) -> Tensor:
        return nn.functional.linear(x_MI, self._weight, self._bias)

    def onto(self, sum_MO: Tensor, x_MI: Tensor) -> Tensor:
        if self._bias is None and x_MI.ndim == 2:
            return torch.addmm(sum_MO, x_MI, self._weight_IO)
        return sum_MO + self(x_MI)


class _SideBySide:
    """Several modules over the same rows, their outputs joined; the rows may be scaled before."""

    shape = None  # what such a module computes is not known here

    def __init__(self, modules: Sequence[nn.Module], scale_I: Tensor | None) -> None:
        self._modules = list(modules)
        self._scale = scale_I

    def __call__(self, x_MI: Tensor) -> Tensor:
        if self._scale is not None:
            x_MI = x_MI * self._scale
        if len(self._modules) == 1:
            return self._modules[0](x_MI)
        return torch.cat([module(x_MI) for module in self._modules], -1)

    def onto(self, sum_MO: Tensor, x_MI: Tensor) -> Tensor:
        return sum_MO + self(x_MI)


@torch.no_grad()
def joined_linear(modules: Sequence[nn.Module], may_copy: bool, scale_I: Tensor | None = None) -> Linear:
    """One product for linear layers that read the same rows: x [M, I] -> their outputs side by side [M, O].

    `may_copy` allows a second copy of the weights in a quicker layout; see `has_room`. scale_I: what every row is
    multiplied with before; a copy of the weights has it inside.
    """
    linears = [module for module in modules if type(module) is nn.Linear]
    if may_copy and len(linears) == len(modules) and can_pack(linears[0].weight):
        weight_OI = linears[0].weight.detach()
        if len(linears) > 1:
            weight_OI = torch.cat([linear.weight.detach() for linear in linears])
        if scale_I is not None:
            weight_OI = weight_OI * scale_I
        if all(linear.bias is None for linear in linears):
            return packed(weight_OI)
        biases = [x.weight.new_zeros(x.out_features) if x.bias is None else x.bias.detach() for x in linears]
        return packed(weight_OI, torch.cat(biases))
    return _SideBySide(modules, scale_I)


def packed(weight_OI: Tensor, bias_O: Tensor | None = None) -> Linear:
    """x [..., I] -> x W^T + b, as quickly as this machine can; a large matrix is copied."""
    is_small = weight_OI.dtype == torch.float32 and weight_OI.numel() < _WORTH_IT
    if can_pack(weight_OI) and not is_small:
        return PackedLinear(weight_OI, bias_O)
    return PlainLinear(weight_OI, bias_O)


def can_pack(weight: Tensor) -> bool:
    """Whether oneDNN has a layout of its own for such a matrix here."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and multiplies_bfloat16())


@cache
def multiplies_bfloat16() -> bool:
    """Whether oneDNN has products of bfloat16 on this processor: not where AVX-512 and AVX-NE-CONVERT are missing."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def has_room(model: nn.Module) -> bool:
    """Whether this machine can hold the weights once more and keep half of its free memory."""
    num_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    return num_bytes * 2 < free_bytes(torch.device("cpu"))
