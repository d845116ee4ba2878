"""Bases in 4 bits for tests, and the same computed by transformers with the specification of every product."""

import copy

import torch
from random_models import random_base
from torch import Tensor, nn
from transformers import PreTrainedModel

from euryale.base.base import Base
from euryale.base.choose_forward import ForwardSettings
from euryale.kernels.few_bits import few_bits_product, to_blocks

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
    """A random base of two layers with the weights of a trained one's size, decoded in 4 bits."""
    base = random_base(family, vocab_size, seed, dtype, max_length, eos, **(SIZES | config))
    with torch.no_grad():
        for parameter in base.model.parameters():
            parameter.mul_(0.25 if parameter.ndim > 1 else 1.0)
    return in_4_bits(base)


def in_4_bits(base: Base) -> Base:
    settings = ForwardSettings(is_int4=True)
    return Base(base.model, base.tokenizer, base.path, base.fingerprint, "int4", settings)


class _Specified(nn.Module):
    """A linear layer whose product is the specification's."""

    def __init__(self, linear: nn.Linear, bits: int) -> None:
        super().__init__()
        self._blocks, self.bias = to_blocks(linear.weight, bits), linear.bias
        self.out_features = linear.out_features

    def forward(self, x: Tensor) -> Tensor:
        y = few_bits_product(x.flatten(0, -2), self._blocks).to(x.dtype).unflatten(0, x.shape[:-1])
        return y if self.bias is None else y + self.bias.to(x.dtype)


def specified(base: Base) -> PreTrainedModel:
    """The model in float64 with every matrix of its layers in 4 bits and the output matrix in 8: the slow twin."""
    model = copy.deepcopy(base.model).double()
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear:
            parent = model.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], _Specified(module, 8 if name == "lm_head" else 4))
    return model
