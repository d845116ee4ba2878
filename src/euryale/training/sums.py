"""Sums over labels: `DeviceSums` while a step is computed, `HostSums` for what is logged and saved.

Gradients are of sums over labels. They are added over micro-batches (by autograd) and ranks (here), and divided once
by the number of labels of the whole step, so every label weighs the same wherever it was counted. Processes add
gradients themselves, once per step: what is trained is small compared with the base, so that
overlapping with the backward pass would gain little, and modules need no wrapper.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

_LISTS = ("loss_K", "hits_K", "count_K")
_NUMBERS = ("base_loss", "base_count", "tokens", "num_masked", "num_steps", "seconds")


class DeviceSums(NamedTuple):
    """Sums over the labels of a batch, or of a whole step; float64 but for the loss."""

    loss: Tensor  # scalar over labels and heads; before `add_up` it carries the gradient
    heads_3K: Tensor  # of each head: nats, labels that were its first choice, labels
    # medusa2: nats between the adapted base and the base as it was, labels of that; tokens that are not padding,
    # batches without a single label (both only after `add_up`)
    others_4: Tensor

    @property
    def loss_K(self) -> Tensor:
        return self.heads_3K[0]

    @property
    def hits_K(self) -> Tensor:
        return self.heads_3K[1]

    @property
    def count_K(self) -> Tensor:
        return self.heads_3K[2]

    @property
    def base_loss(self) -> Tensor:
        return self.others_4[0]

    @property
    def base_count(self) -> Tensor:
        return self.others_4[1]

    @property
    def num_labels(self) -> Tensor:
        """What gradients are divided by: where the base learns too, its labels; the heads' losses are then added up as
        in the paper's equation 2, not averaged over heads."""
        return torch.where(self.base_count > 0, self.base_count, self.count_K.sum())

    @property
    def is_finite(self) -> bool:
        """Waits for the device."""
        return bool(self.loss_K.isfinite().all() and self.base_loss.isfinite())

    def to_host(self, grad_norm: Tensor) -> "HostSums":
        """One optimizer step. Waits for the device."""
        loss_K, hits_K, count_K = self.heads_3K.tolist()
        base_loss, base_count, tokens, masked = self.others_4.tolist()
        return HostSums(
            loss_K, hits_K, count_K, base_loss, base_count, int(tokens), int(masked), grad_norm=float(grad_norm)
        )


@dataclass
class HostSums:
    """Sums over optimizer steps, of all micro-batches and ranks: one step, or those since the last log point."""

    loss_K: list[float] = field(default_factory=list)
    hits_K: list[float] = field(default_factory=list)
    count_K: list[float] = field(default_factory=list)
    base_loss: float = 0.0
    base_count: float = 0.0
    tokens: int = 0
    num_masked: int = 0
    num_steps: int = 0
    grad_norm: float = 0.0  # of the last step, before clipping
    seconds: float = 0.0

    def add(self, step: "HostSums", seconds: float) -> None:
        """Counts one more step, which took `seconds`."""
        for name in _LISTS:
            more = getattr(step, name)
            own = getattr(self, name) or [0.0] * len(more)
            setattr(self, name, [a + b for a, b in zip(own, more, strict=True)])
        for name in _NUMBERS:
            setattr(self, name, getattr(self, name) + getattr(step, name))
        self.num_steps, self.seconds, self.grad_norm = self.num_steps + 1, self.seconds + seconds, step.grad_norm

    @property
    def is_finite(self) -> bool:
        return all(map(math.isfinite, [*self.loss_K, self.base_loss, self.grad_norm]))

    @property
    def has_labels(self) -> bool:
        return sum(self.count_K) + self.base_count > 0

    @property
    def loss_nats(self) -> float | None:
        """Mean over the labels of all heads; None when there was none."""
        return sum(self.loss_K) / sum(self.count_K) if sum(self.count_K) else None

    @property
    def tokens_per_s(self) -> float:
        """Speed of training alone: evaluation and saving are not in it."""
        return self.tokens / self.seconds

    def record(self) -> dict[str, object]:
        """The numbers for metrics.jsonl."""
        record: dict[str, object] = {"grad_norm": self.grad_norm, "tokens_per_s": round(self.tokens_per_s, 1)}
        if self.num_masked:
            record |= {"masked_batches": self.num_masked}
        if self.base_count:
            record |= {"base_kl_nats": self.base_loss / self.base_count}
        if self.loss_nats is None:
            return record
        return record | {
            "loss_nats": self.loss_nats,
            "head_loss_nats": [loss / max(1.0, n) for loss, n in zip(self.loss_K, self.count_K, strict=True)],
            "head_top1": [hits / max(1.0, n) for hits, n in zip(self.hits_K, self.count_K, strict=True)],
        }


def add_up(parts: Sequence[DeviceSums], tokens: int, accelerator: Accelerator) -> DeviceSums:
    """Sums over micro-batches and ranks, still on the device."""
    heads_3K = torch.stack([part.heads_3K for part in parts]).sum(dim=0)
    others_4 = torch.stack([part.others_4 for part in parts]).sum(dim=0)
    others_4[2] = tokens
    others_4[3] = torch.stack([part.num_labels == 0 for part in parts]).sum()
    summed = accelerator.reduce(torch.cat([heads_3K.flatten(), others_4]), "sum")
    return DeviceSums(parts[0].loss, summed[:-4].view_as(heads_3K), summed[-4:])


def average_gradients(
    parameters: Sequence[nn.Parameter], num_labels: Tensor, max_norm: float, accelerator: Accelerator
) -> Tensor:
    """Sums gradients over ranks, divides them by the labels of the whole step, clips (0: not). Returns the norm."""
    if accelerator.num_processes > 1:
        _add_over_processes(parameters, accelerator)
    with_gradient = [parameter for parameter in parameters if parameter.grad is not None]
    for parameter in with_gradient:
        assert parameter.grad is not None
        parameter.grad.div_(num_labels.clamp(min=1).to(parameter.grad.dtype))
    return nn.utils.clip_grad_norm_(with_gradient, max_norm or float("inf"))


def _add_over_processes(parameters: Sequence[nn.Parameter], accelerator: Accelerator) -> None:
    """A gradient that is missing here but not everywhere (no label of a head in this batch) counts as zeros."""
    device = parameters[0].device
    present_P = torch.tensor([p.grad is not None for p in parameters], dtype=torch.float32, device=device)
    present_P = accelerator.reduce(present_P, "sum")
    gradients: list[Tensor] = []
    for parameter, is_present in zip(parameters, present_P.tolist(), strict=True):
        if is_present:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            gradients.append(parameter.grad)
    for gradient, total in zip(gradients, accelerator.reduce(gradients, "sum"), strict=True):
        gradient.copy_(total)
