"""How are matrices moved so that no direction is left behind?

The gradient of a matrix is dominated by a few directions; AdamW follows them and learns the rest slowly. Muon (Jordan
et al. 2024, kellerjordan.github.io/posts/muon) replaces the averaged gradient by the nearest matrix whose directions
all weigh the same, U V^T for U S V^T, found by a short Newton-Schulz iteration:

    M <- momentum M + G          averaged gradient
    O =  orthogonal(G + momentum M)          (Nesterov)
    W <- W - lr sqrt(max(1, rows / columns)) O

A matrix that reads several vectors side by side (hidden states, tokens of a path) is several matrices, one for each:
blocks of columns, orthogonalised apart. What is no matrix (biases), or is one in name only (a row for each token of a
vocabulary), is moved by AdamW.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # steep at 0: singular values end in 0.7 to 1.2, which is near enough to 1
_ITERATIONS = 5
_AT_ONCE = 1 << 25  # numbers that are orthogonalised together: few products for small heads, bounded memory for large


class _Block(NamedTuple):
    """Some columns of a matrix, and where the averaged gradient moves them."""

    weight: Tensor
    direction: Tensor


class Muon(torch.optim.Optimizer):
    """Muon for groups with `blocks` (how many matrices lie side by side in each of its own), AdamW for the others."""

    def __init__(
        self, groups: list[dict[str, Any]], lr: float, momentum: float = 0.95, betas: tuple[float, float] = (0.9, 0.95)
    ) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0, "blocks": 0})
        self._momentum = momentum
        # The same groups, so that a rate set from outside is AdamW's too; the same state, so that it is saved as one.
        self._adamw = torch.optim.AdamW([g for g in self.param_groups if not g["blocks"]], lr, betas, fused=True)
        self._adamw.state = self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Moves every parameter that has a gradient."""
        assert closure is None, "there is nothing to evaluate again"
        for group in self.param_groups:
            if not group["blocks"]:
                continue
            blocks = [
                block for parameter in group["params"] if parameter.grad is not None
                for block in self._blocks(parameter, group["blocks"])
            ]  # fmt: skip
            for alike in _alike(blocks):
                rows, columns = alike[0].weight.shape
                length = group["lr"] * max(1.0, rows / columns) ** 0.5
                directions = orthogonal(torch.stack([block.direction for block in alike]))
                for block, direction in zip(alike, directions, strict=True):
                    block.weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-length)
        self._adamw.step()

    def _blocks(self, parameter: nn.Parameter, num: int) -> list[_Block]:
        assert parameter.grad is not None
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].mul_(self._momentum).add_(parameter.grad)
        direction = parameter.grad + self._momentum * state["momentum"]
        return [_Block(*pair) for pair in zip(parameter.chunk(num, 1), direction.chunk(num, 1), strict=True)]


def orthogonal(matrices_xRC: Tensor) -> Tensor:
    """Nearly U V^T for each matrix U S V^T [..., R, C]: singular values of 0.7 to 1.2, those near zero excepted."""
    a, b, c = _COEFFICIENTS
    x = matrices_xRC / (matrices_xRC.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    x = x.to(_product_dtype(x))
    is_tall = x.shape[-2] > x.shape[-1]
    if is_tall:
        x = x.mT
    for _ in range(_ITERATIONS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return (x.mT if is_tall else x).to(matrices_xRC.dtype)


def _product_dtype(x: Tensor) -> torch.dtype:
    """bfloat16 where its products are fast: the iteration corrects what rounding does to it."""
    if x.dtype != torch.float32 or not (x.device.type == "cuda" or _cpu_has_bfloat16()):
        return x.dtype
    return torch.bfloat16


@lru_cache(maxsize=1)
def _cpu_has_bfloat16() -> bool:
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _alike(blocks: list[_Block]) -> Iterator[list[_Block]]:
    """Blocks of one shape, at most _AT_ONCE numbers at a time."""
    by_shape: dict[torch.Size, list[_Block]] = {}
    for block in blocks:
        by_shape.setdefault(block.weight.shape, []).append(block)
    for shape, members in by_shape.items():
        most = max(1, _AT_ONCE // shape.numel())
        for start in range(0, len(members), most):
            yield members[start : start + most]
