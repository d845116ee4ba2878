"""Search for the part of a base whose output is NaN or infinite."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from euryale.base.base import Base


@torch.inference_mode()
def first_not_finite(base: Base, ids: Sequence[int]) -> str | None:
    """The name of the first module whose output over this text holds NaN or infinity; None when all are finite.

    Every module is watched, so inside of a layer it is the matrix that is named.
    """
    found: list[str] = []

    def watch(name: str, module: nn.Module) -> RemovableHandle:
        def look(_module: nn.Module, _inputs: object, output: object) -> None:
            first = output[0] if isinstance(output, (tuple, list)) else output
            if isinstance(first, Tensor) and first.is_floating_point() and not first.isfinite().all():
                found.append(name)

        return module.register_forward_hook(look)

    hooks = [watch(name, module) for name, module in base.model.named_modules()]
    try:
        ids_1T = torch.tensor([list(ids)], device=base.device)
        positions_1T = torch.arange(len(ids), device=base.device)[None]
        base.logits(base.forward_packed(ids_1T, positions_1T, torch.zeros_like(ids_1T)))
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None
