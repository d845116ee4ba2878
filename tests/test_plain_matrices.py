"""The compiled forward reads matrices in place of layers only where a layer is its matrix."""

import pytest
import torch
from compiled_models import in_4_bits
from compilers import needs_compiler
from random_models import random_base, twin
from torch import Tensor

from euryale.base.base import Base
from euryale.base.compiled_llama import CompiledLlama
from euryale.decoding.engine import Engine
from euryale.errors import UserError

pytestmark = needs_compiler


class WithAdapter(torch.nn.Module):
    """A matrix and something beside it, as peft wraps one."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.base_layer, self.out_features = linear, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return -self.base_layer(x)


def adapted(name: str, dtype: torch.dtype = torch.float32) -> Base:
    """A base with an adapter around the module of this name."""
    base = random_base("llama", 29, dtype=dtype)
    base.model.set_submodule(name, WithAdapter(base.model.get_submodule(name)))
    return base


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj", "lm_head"])
def test_an_adapter_is_asked_itself(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: False)
    base = adapted(name, dtype)
    assert not isinstance(base.forward(), CompiledLlama)
    if dtype == torch.float32:
        prompt = torch.tensor([[3, 1, 4]])
        expected = twin(base).generate(prompt, max_new_tokens=12, do_sample=False, pad_token_id=0)[0, 3:]
        assert Engine(base, drafter="none").generate([[3, 1, 4]], 12)[0].ids == expected.tolist()


@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj", "lm_head"])
def test_an_adapter_is_refused_in_4_bits(name: str) -> None:
    with pytest.raises(UserError, match=r"base\.quantization=int4 must have plain matrices; got"):
        in_4_bits(adapted(name)).forward()
