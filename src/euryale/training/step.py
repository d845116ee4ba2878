"""What is one optimizer step, across micro-batches and ranks, and what is remembered of it?

Gradients are of sums over labels. They are added over micro-batches (by autograd) and ranks (here), and divided once
by the number of labels of the whole step, so every label weighs the same wherever it was counted. Ranks add
gradients themselves, once per step: what is trained is small beside the base, and no wrapper around it is needed.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from euryale.errors import UserError
from euryale.training.objective import LossSums


class StepResult(NamedTuple):
    """One optimizer step on the host: sums over micro-batches and ranks."""

    loss_K: list[float]
    hits_K: list[float]
    count_K: list[float]
    tokens: int  # those that are not padding
    grad_norm: float  # before clipping


@dataclass
class Window:
    """Sums over the steps since the last log point."""

    loss_K: list[float] = field(default_factory=list)
    hits_K: list[float] = field(default_factory=list)
    count_K: list[float] = field(default_factory=list)
    tokens: int = 0
    num_steps: int = 0
    grad_norm: float = 0.0  # of the last step
    seconds: float = 0.0

    def add(self, result: StepResult, seconds: float) -> None:
        """Counts one more step."""
        zeros = [0.0] * len(result.loss_K)
        self.loss_K = [a + b for a, b in zip(self.loss_K or zeros, result.loss_K, strict=True)]
        self.hits_K = [a + b for a, b in zip(self.hits_K or zeros, result.hits_K, strict=True)]
        self.count_K = [a + b for a, b in zip(self.count_K or zeros, result.count_K, strict=True)]
        self.tokens += result.tokens
        self.num_steps += 1
        self.grad_norm = result.grad_norm
        self.seconds += seconds

    @property
    def loss_nats(self) -> float:
        """Mean over the labels of all heads. Raises UserError when there was none: training would do nothing."""
        if not sum(self.count_K):
            raise UserError(
                f"No token counted in the last {self.num_steps} steps: every document is too short for the heads, or "
                "no token is a target. Check the data (data=...), or use fewer heads."
            )
        return sum(self.loss_K) / sum(self.count_K)

    @property
    def tokens_per_s(self) -> float:
        """Speed of training alone: evaluation and saving are not in it."""
        return self.tokens / self.seconds

    def record(self) -> dict[str, object]:
        """The numbers for metrics.jsonl."""
        return {
            "loss_nats": self.loss_nats,
            "head_loss_nats": [loss / max(1.0, n) for loss, n in zip(self.loss_K, self.count_K, strict=True)],
            "head_top1": [hits / max(1.0, n) for hits, n in zip(self.hits_K, self.count_K, strict=True)],
            "grad_norm": self.grad_norm,
            "tokens_per_s": round(self.tokens_per_s, 1),
        }


def add_up(parts: list[LossSums], tokens: int, accelerator: Accelerator) -> Tensor:
    """Sums over micro-batches and ranks, on the device: rows loss, hits, labels and (repeated) tokens, [4, K]."""
    sums_3K = torch.stack([torch.stack([part.loss_K, part.hits_K, part.count_K]) for part in parts]).sum(dim=0)
    sums_4K = torch.cat([sums_3K, torch.full_like(sums_3K[:1], tokens)])
    return accelerator.reduce(sums_4K, "sum")


def average_gradients(
    parameters: Iterable[nn.Parameter], num_labels: Tensor, max_norm: float, accelerator: Accelerator
) -> Tensor:
    """Sums gradients over ranks, divides them by the labels of the whole step, clips (0: not). Returns the norm."""
    with_gradient = [parameter for parameter in parameters if parameter.grad is not None]
    for parameter in with_gradient:
        assert parameter.grad is not None
        if accelerator.num_processes > 1:
            parameter.grad = accelerator.reduce(parameter.grad, "sum")
        parameter.grad.div_(num_labels.clamp(min=1).to(parameter.grad.dtype))
    return nn.utils.clip_grad_norm_(with_gradient, max_norm or float("inf"))
