"""torch.optim.Muon for the matrices of heads and AdamW for everything else, as one optimizer.

The gradient of a matrix is dominated by a few directions; AdamW follows them and learns the rest slowly. Muon (Jordan
et al. 2024, kellerjordan.github.io/posts/muon) replaces the averaged gradient U S V^T by about U V^T, whose directions
all weigh the same, and moves an R x C matrix by lr sqrt(max(1, R / C)) times that.

A matrix that reads several vectors side by side (hidden states, tokens of a path) is several matrices, one for each
vector. Muon gets these blocks of columns as views of the parameter, so that each is orthogonalised alone.
"""

from typing import Any

import torch
from torch import Tensor, nn

MOMENTUM = "momentum_buffer"  # torch.optim.Muon's name for the averaged gradient


class MuonAndAdamW(torch.optim.Optimizer):
    """Muon for groups with `blocks` (matrices side by side in each parameter), AdamW for the other groups."""

    def __init__(self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float] = (0.9, 0.95)) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0, "blocks": 0})
        # The same groups, so that a rate set from outside is AdamW's too; the same state, so that it is saved as one.
        self._adamw = torch.optim.AdamW([g for g in self.param_groups if not g["blocks"]], lr, betas, fused=True)
        self._adamw.state = self.state
        self._matrices = [group for group in self.param_groups if group["blocks"]]
        self._views: dict[nn.Parameter, tuple[Tensor, ...]] = {
            parameter: parameter.detach().chunk(group["blocks"], 1)
            for group in self._matrices
            for parameter in group["params"]
        }
        self._muon = torch.optim.Muon(
            [
                group | {"params": [view for p in group["params"] for view in self._views[p]]}
                for group in self._matrices
            ],
            lr=lr,
            adjust_lr_fn="original",
        )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Moves every parameter that has a gradient."""
        for group, of_muon in zip(self._matrices, self._muon.param_groups, strict=True):
            of_muon["lr"] = group["lr"]
            for parameter in group["params"]:
                self._lend(parameter, group["blocks"])
        self._muon.step()
        self._muon.zero_grad()
        self._adamw.step()

    def _lend(self, parameter: nn.Parameter, num_blocks: int) -> None:
        """Gives Muon the blocks of a parameter's gradient and of its average, as views of what is kept here."""
        if parameter.grad is None:
            return
        average = self.state[parameter].setdefault(MOMENTUM, torch.zeros_like(parameter))
        for view, gradient, block in zip(
            self._views[parameter], parameter.grad.chunk(num_blocks, 1), average.chunk(num_blocks, 1), strict=True
        ):
            view.grad = gradient
            self._muon.state[view][MOMENTUM] = block
