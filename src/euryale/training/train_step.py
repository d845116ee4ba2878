"""What is one optimizer step, across micro-batches and ranks, and what is remembered of it?

Gradients are of sums over labels. They are added over micro-batches (by autograd) and ranks (here), and divided once
by the number of labels of the whole step, so every label weighs the same wherever it was counted. Processes add
gradients themselves, once per step and in one piece: what is trained is small beside the base, so that there is little
to hide behind the backward pass, and no wrapper around modules is needed.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from euryale.training.objective import LossSums


class StepResult(NamedTuple):
    """One optimizer step on the host: sums over micro-batches and ranks."""

    loss_K: list[float]
    hits_K: list[float]
    count_K: list[float]
    base_loss: float  # see LossSums
    base_count: float
    tokens: int  # those that are not padding
    num_masked: int  # batches without a single label
    grad_norm: float  # before clipping

    @property
    def is_finite(self) -> bool:
        return all(map(math.isfinite, [*self.loss_K, self.base_loss, self.grad_norm]))


@dataclass
class Window:
    """Sums over the steps since the last log point."""

    loss_K: list[float] = field(default_factory=list)
    hits_K: list[float] = field(default_factory=list)
    count_K: list[float] = field(default_factory=list)
    base_loss: float = 0.0
    base_count: float = 0.0
    tokens: int = 0
    num_masked: int = 0
    num_steps: int = 0
    grad_norm: float = 0.0  # of the last step
    seconds: float = 0.0

    def add(self, result: StepResult, seconds: float) -> None:
        """Counts one more step."""
        zeros = [0.0] * len(result.loss_K)
        self.loss_K = [a + b for a, b in zip(self.loss_K or zeros, result.loss_K, strict=True)]
        self.hits_K = [a + b for a, b in zip(self.hits_K or zeros, result.hits_K, strict=True)]
        self.count_K = [a + b for a, b in zip(self.count_K or zeros, result.count_K, strict=True)]
        self.base_loss += result.base_loss
        self.base_count += result.base_count
        self.tokens += result.tokens
        self.num_masked += result.num_masked
        self.num_steps += 1
        self.grad_norm = result.grad_norm
        self.seconds += seconds

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


class Totals(NamedTuple):
    """Sums over micro-batches and ranks, still on the device."""

    heads_3K: Tensor  # loss, hits, labels
    others_4: Tensor  # base_loss, base_count, tokens, batches without a label

    @property
    def num_labels(self) -> Tensor:
        """What gradients are divided by: where the base learns too, its labels; the heads' losses are then added up as
        in the paper's equation 2, not averaged over heads."""
        return torch.where(self.others_4[1] > 0, self.others_4[1], self.heads_3K[2].sum())

    def result(self, grad_norm: Tensor) -> StepResult:
        """On the host. This waits for the device."""
        (loss_K, hits_K, count_K), (base_loss, base_count, tokens, masked) = (
            self.heads_3K.tolist(),
            self.others_4.tolist(),
        )
        return StepResult(loss_K, hits_K, count_K, base_loss, base_count, int(tokens), int(masked), float(grad_norm))


def add_up(parts: list[LossSums], tokens: int, accelerator: Accelerator) -> Totals:
    """Sums over micro-batches and ranks."""
    heads_3K = torch.stack([torch.stack([part.loss_K, part.hits_K, part.count_K]) for part in parts]).sum(dim=0)
    masked = torch.stack([part.count_K.sum() + part.base_count == 0 for part in parts]).sum().to(heads_3K)
    base_2 = torch.stack([torch.stack([part.base_loss, part.base_count]) for part in parts]).sum(dim=0)
    others_4 = torch.cat([base_2, torch.stack([torch.full_like(masked, tokens), masked])])
    summed = accelerator.reduce(torch.cat([heads_3K.flatten(), others_4]), "sum")
    return Totals(summed[:-4].reshape(heads_3K.shape), summed[-4:])


def average_gradients(
    parameters: Iterable[nn.Parameter], num_labels: Tensor, max_norm: float, accelerator: Accelerator
) -> Tensor:
    """Sums gradients over ranks, divides them by the labels of the whole step, clips (0: not). Returns the norm."""
    parameters = list(parameters)
    if accelerator.num_processes > 1:
        _add_over_processes(parameters, accelerator)
    with_gradient = [parameter for parameter in parameters if parameter.grad is not None]
    for parameter in with_gradient:
        assert parameter.grad is not None
        parameter.grad.div_(num_labels.clamp(min=1).to(parameter.grad.dtype))
    return nn.utils.clip_grad_norm_(with_gradient, max_norm or float("inf"))


MAX_TOGETHER = 2**26  # numbers sent at once: 256 MB in float32


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
    while gradients:
        together = [gradients.pop()]
        while gradients and sum(map(Tensor.numel, together)) + gradients[-1].numel() <= MAX_TOGETHER:
            together.append(gradients.pop())
        flat = accelerator.reduce(torch.cat([gradient.flatten() for gradient in together]), "sum")
        for gradient, total in zip(together, flat.split([g.numel() for g in together]), strict=True):
            gradient.copy_(total.view_as(gradient))
