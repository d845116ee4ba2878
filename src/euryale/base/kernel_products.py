"""Products of the kernel forward: a base's matrices as they are loaded, joined where they read the same rows.

Plain matrices are laid side by side in one tensor, and those of the model become views of it: memory is taken once, and
a weight that is written to in place is written to in both. Matrices in 4 bits (NF4) run in one of three ways:

    kernel   nf4_linear on bitsandbytes' own bytes, up to 32 rows; more rows (prompts) go through bitsandbytes
    expand   expanded to 16 bits once, then as plain matrices: 4 times the memory, the quickest from some 32 rows on
    bnb      bitsandbytes' modules

A layer with a LoRA adapter alongside (peft) is its matrix in one of these ways and the two matrices of the adapter. A
module that is more than its matrix in any other way is asked itself.

Letters: M rows, I inputs, O outputs.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from euryale.errors import UserError
from euryale.kernels.nf4_weight import nf4_weight
from euryale.kernels.registry import Choice, find

MOST_ROWS = 32  # of the 4-bit kernels

Product = Callable[[Tensor], Tensor]  # x [M, I], contiguous -> [M, O], contiguous


class Products:
    """Makes the products of one model, and counts the ways in which they run."""

    def __init__(self, device: torch.device, dtype: torch.dtype, backend: str, nf4_runtime: str) -> None:
        self._device, self._dtype, self._backend, self._runtime = device, dtype, backend, nf4_runtime
        self.ways: Counter[str] = Counter()

    @torch.no_grad()
    def of(self, modules: Sequence[nn.Module]) -> Product:
        """One product for linear layers that read the same rows, their outputs side by side.

        Raises UserError where a 4-bit kernel that was asked for cannot run.
        """
        if all(type(module) is nn.Linear for module in modules):
            self.ways["plain"] += len(modules)
            return _Plain(*_joined([module for module in modules if isinstance(module, nn.Linear)]))
        products = [self._one(module) for module in modules]
        return products[0] if len(products) == 1 else _SideBySide(products)

    def _one(self, module: nn.Module) -> Product:
        if type(module) is nn.Linear:
            self.ways["plain"] += 1
            return _Plain(module.weight.detach(), module.bias)
        if (inner := _under_lora(module)) is not None:
            self.ways["with an adapter"] += 1
            return _Adapted(module, self._one(inner))
        if not is_4bit(module):
            self.ways[f"asked themselves ({type(module).__name__})"] += 1
            return module
        choice = self._nf4_kernel(module)
        if choice is not None:
            self.ways[f"nf4 kernel ({choice.backend})"] += 1
            return _Nf4(module, _bias(module, self._dtype), choice)
        if self._runtime == "expand":
            self.ways["nf4 expanded"] += 1
            return _Plain(expanded(module, self._dtype), _bias(module, self._dtype))
        self.ways["nf4 bitsandbytes"] += 1
        return module

    def _nf4_kernel(self, module: nn.Module) -> Choice | None:
        """What runs a 4-bit matrix; None: not a kernel. `auto` takes one where the card has one."""
        if self._runtime not in ("auto", "kernel"):
            return None
        weight: Any = module.weight
        state = weight.quant_state
        num_outputs, num_inputs = state.shape
        choice = find(
            "nf4_linear", self._device, self._backend, dtype=self._dtype, num_rows=MOST_ROWS,
            block_size=state.blocksize, num_inputs=num_inputs, num_outputs=num_outputs,
        )  # fmt: skip
        is_slow = choice.backend == "torch" and self._backend != "torch"  # it expands the matrix in every call
        if is_slow and self._runtime == "kernel":
            raise UserError(
                f"base.nf4_runtime=kernel must have a kernel for a matrix of {num_outputs} x {num_inputs} on "
                f"{self._device}; {choice.reason}. Use base.nf4_runtime=auto."
            )
        return None if is_slow else choice


class _Plain:
    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        self._weight_OI, self._bias_O = weight_OI, None if bias_O is None else bias_O.detach()

    def __call__(self, x_MI: Tensor) -> Tensor:
        return linear(x_MI, self._weight_OI, self._bias_O)


class _SideBySide:
    def __init__(self, products: Sequence[Product]) -> None:
        self._products = products

    def __call__(self, x_MI: Tensor) -> Tensor:
        return torch.cat([product(x_MI) for product in self._products], -1)


class _Nf4:
    def __init__(self, module: nn.Module, bias_O: Tensor | None, choice: Choice) -> None:
        weight: Any = module.weight
        self._module, self._bias_O = module, bias_O
        self._weight = nf4_weight(weight.data, weight.quant_state)
        self._kernel: Any = choice.function

    def __call__(self, x_MI: Tensor) -> Tensor:
        if len(x_MI) > MOST_ROWS:
            return self._module(x_MI)
        return self._kernel(x_MI, self._weight, self._bias_O)


class _Adapted:
    """peft's layer: y = W x + scaling B A x, for each adapter in use."""

    def __init__(self, module: nn.Module, product: Product) -> None:
        self._module: Any = module
        self._product = product

    def __call__(self, x_MI: Tensor) -> Tensor:
        module, y_MO = self._module, self._product(x_MI)
        if module.disable_adapters:
            return y_MO
        for name in module.active_adapters:
            if name in module.lora_A:
                narrow_MR = module.lora_A[name](module.lora_dropout[name](x_MI))
                y_MO = y_MO + module.lora_B[name](narrow_MR) * module.scaling[name]
        return y_MO


def _under_lora(module: nn.Module) -> nn.Module | None:
    """The layer that peft has put a plain LoRA alongside of, in the same dtype; None for any other module."""
    theirs: Any = module
    if not type(module).__module__.startswith("peft.tuners.lora") or not hasattr(module, "base_layer"):
        return None
    dtypes = {parameter.dtype for part in (theirs.lora_A, theirs.lora_B) for parameter in part.parameters()}
    variants = getattr(theirs, "lora_variant", None)  # DoRA and others, in newer peft
    is_plain = not theirs.merged and not variants and len(dtypes) == 1
    return theirs.base_layer if is_plain else None


def is_4bit(module: nn.Module) -> bool:
    """Whether it is a 4-bit layer of bitsandbytes, and not one that peft has wrapped."""
    is_theirs = type(module).__name__ == "Linear4bit" and type(module).__module__.startswith("bitsandbytes")
    return is_theirs and getattr(module.weight, "quant_state", None) is not None


def as_plain(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A 4-bit layer as a plain one in `dtype`; any other as it is."""
    if not is_4bit(module):
        return module
    weight_OI, bias_O = expanded(module, dtype), _bias(module, dtype)
    plain = nn.Linear(weight_OI.shape[1], len(weight_OI), bias=bias_O is not None, device="meta")
    plain.weight = nn.Parameter(weight_OI, requires_grad=False)
    if bias_O is not None:
        plain.bias = nn.Parameter(bias_O, requires_grad=False)
    return plain


def expanded(module: nn.Module, dtype: torch.dtype) -> Tensor:
    """A 4-bit matrix [O, I] in `dtype`: the products of codes and scales, rounded once."""
    weight: Any = module.weight
    return nf4_weight(weight.data, weight.quant_state).matrix(torch.float32).to(dtype)


def _bias(module: nn.Module, dtype: torch.dtype) -> Tensor | None:
    """In the dtype of the rows, which kernels take it to be in; bitsandbytes keeps it as it was loaded."""
    bias = module.bias
    return bias.detach().to(dtype) if isinstance(bias, Tensor) else None


def _joined(modules: Sequence[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    """Weights [O, I] and biases [O] side by side; the modules' weights become views of them."""
    weights = [module.weight.detach() for module in modules]
    whole_OI = weights[0]
    if len(weights) > 1:
        whole_OI = _whole_of(weights)
        for module, part_OI in zip(modules, whole_OI.split([len(weight) for weight in weights]), strict=True):
            module.weight.data = part_OI
    if all(module.bias is None for module in modules):
        return whole_OI, None
    biases = [module.weight.new_zeros(len(module.weight)) if module.bias is None else module.bias for module in modules]
    return whole_OI, torch.cat([bias.detach() for bias in biases])


def _whole_of(weights: Sequence[Tensor]) -> Tensor:
    """The tensor that these are neighbouring rows of, or a new one."""
    first, end = weights[0], weights[0].data_ptr()
    for weight in weights:
        is_next = weight.is_contiguous() and weight.data_ptr() == end
        if not is_next or weight.untyped_storage().data_ptr() != first.untyped_storage().data_ptr():
            return torch.cat(list(weights))
        end += weight.numel() * weight.element_size()
    return first.as_strided((sum(map(len, weights)), first.shape[1]), first.stride())
