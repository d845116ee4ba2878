"""Linear layers that are their matrix and nothing more: what the compiled forward may read in their place."""

from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from euryale.errors import UserError


def has_plain_matrices(model: PreTrainedModel) -> bool:
    """Whether no layer, and not the output matrix, has an adapter, is in 4 bits or computes something of its own."""
    inner: Any = model.base_model
    modules = [module for layer in inner.layers for module in layer.modules()]
    return all(type(module) is nn.Linear for module in [*modules, model.get_output_embeddings()] if _has_weight(module))


def _has_weight(module: nn.Module) -> bool:
    return getattr(getattr(module, "weight", None), "ndim", 1) > 1


def plain(modules: Sequence[nn.Module]) -> list[nn.Linear]:
    """The same modules. Raises UserError where one is not a plain linear layer."""
    linears = [module for module in modules if type(module) is nn.Linear]
    if len(linears) < len(modules):
        raise UserError(
            "base.quantization=int4 must have plain matrices; got "
            f"{', '.join(sorted({type(module).__name__ for module in modules}))} (an adapter beside the layers?). "
            "Merge the adapter (base.merge_adapter=true), or use base.quantization=none."
        )
    return linears
