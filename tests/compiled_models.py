"""Bases of the compiled forward for tests, and the same computed by transformers with specified products."""

import copy
from typing import Any

import torch
from compilers import skip_without_compiler
from random_models import random_base
from torch import Tensor, nn
from transformers import PreTrainedModel

from euryale.base.base import Base
from euryale.base.choose_forward import ForwardSettings
from euryale.base.compiled_llama import CompiledLlama
from euryale.kernels.cpu.compile import own_processor
from euryale.kernels.cpu_matrix import filled, whole_blocks
from euryale.kernels.few_bits import few_bits_product, to_blocks

OWN = (*own_processor(), "-DWORTH_THREADS=0")  # small products use all threads too
LANES = 16  # of a vector
ODD_SIZES: dict[str, object] = {  # of which nothing is a whole block or vector
    "hidden_size": 51, "intermediate_size": 77, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 10,
}  # fmt: skip
SIZES: dict[str, object] = {
    "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
}  # fmt: skip


def int4_base(
    family: str = "llama",
    vocab_size: int = 29,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    max_length: int = 128,
    eos: int | list[int] | None = None,
    **config: object,
) -> Base:
    """A random base of two layers with the weights of a trained one's size, decoded in 4 bits.

    Without a C++ compiler the test ends here as skipped.
    """
    skip_without_compiler()
    base = random_base(family, vocab_size, seed, dtype, max_length, eos, **(SIZES | config))
    with torch.no_grad():
        for parameter in base.model.parameters():
            parameter.mul_(0.25 if parameter.ndim > 1 else 1.0)
    return in_4_bits(base)


def compiled_base(bits: int, family: str = "llama", seed: int = 0, **config: Any) -> Base:
    """The same with weights in 4, 16 or 32 bits, whatever the base's dtype."""
    base = int4_base(family, seed=seed, **config)
    if bits == 4:
        return base
    base = Base(base.model, base.tokenizer, base.path, base.fingerprint)
    base._forward = CompiledLlama(base.model, bits)
    return base


def in_4_bits(base: Base) -> Base:
    settings = ForwardSettings(is_int4=True)
    return Base(base.model, base.tokenizer, base.path, base.fingerprint, "int4", settings)


class _Specified(nn.Module):
    """A linear layer whose product is the specification's."""

    def __init__(self, linear: nn.Linear, bits: int, head: int | None) -> None:
        """head: width of the heads that it reads, each of which is filled up to whole vectors before it is rounded."""
        super().__init__()
        self._head = head
        self._bits = bits
        self._weight = linear.weight.bfloat16() if bits == 16 else linear.weight
        self.bias, self.out_features = linear.bias, linear.out_features

    def forward(self, x: Tensor) -> Tensor:
        if self._bits >= 16:
            y = (x.bfloat16().to(x.dtype) if self._bits == 16 else x) @ self._weight.to(x.dtype).T
        else:
            blocks = to_blocks(self._in_blocks(self._weight), self._bits)
            y = few_bits_product(self._in_blocks(x.flatten(0, -2)), blocks).to(x.dtype).unflatten(0, x.shape[:-1])
        return y if self.bias is None else y + self.bias.to(x.dtype)

    def _in_blocks(self, x: Tensor) -> Tensor:
        if self._head is not None:
            x = filled(x, 1, self._head, -(-self._head // LANES) * LANES)
        return filled(x, 1, x.shape[1], whole_blocks(x.shape[1]))


def specified(base: Base, bits: int) -> PreTrainedModel:
    """The model in float64 with every matrix in so many bits, the output matrix in at least 8: the slow twin."""
    model = copy.deepcopy(base.model).double()
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear:
            parent = model.get_submodule(name.rpartition(".")[0])
            head = parent.head_dim if name.endswith("o_proj") else None
            made = _Specified(module, max(bits, 8) if name == "lm_head" else bits, head)
            setattr(parent, name.rpartition(".")[2], made)
    return model
