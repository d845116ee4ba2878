"""Which weights are trained, and how are they moved: optimizer, learning rate at each step, in which numbers?"""

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from euryale.errors import UserError
from euryale.model.base import Base
from euryale.model.heads import Heads

OPTIMIZERS = ("adamw",)
AUTOCASTS = ("auto", "none", "bf16")


@dataclass
class OptimConfig:
    """The pace of a run; the values in conf/optim are the documented defaults."""

    name: str = "adamw"
    lr: float = 3e-3
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95
    warmup_steps: int = 20
    num_steps: int = 600
    min_lr_ratio: float = 0.05
    gradient_accumulation: int = 1
    max_grad_norm: float = 1.0
    autocast: str = "auto"
    eval_every: int = 200
    eval_batches: int = 8
    save_every: int = 200
    log_every: int = 10

    def check(self) -> None:
        """Raises UserError for a value that cannot be trained with."""
        for name, text, options in (("name", self.name, OPTIMIZERS), ("autocast", self.autocast, AUTOCASTS)):
            if text not in options:
                raise UserError(f"optim.{name}={text} is not known. Choose one of: {', '.join(options)}.")
        for name in ("num_steps", "gradient_accumulation", "log_every"):
            if getattr(self, name) < 1:
                raise UserError(f"optim.{name}={getattr(self, name)}: a whole number of at least 1 is needed.")
        for name in ("weight_decay", "warmup_steps", "max_grad_norm", "eval_every", "eval_batches", "save_every"):
            if getattr(self, name) < 0:
                raise UserError(f"optim.{name}={getattr(self, name)}: a number of at least 0 is needed (0 is off).")
        if not 0 < self.lr < math.inf:
            raise UserError(f"optim.lr={self.lr}: a positive learning rate is needed.")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"optim.{name}={getattr(self, name)}: a number from 0 to below 1 is needed.")
        if not 0 <= self.min_lr_ratio <= 1:
            raise UserError(f"optim.min_lr_ratio={self.min_lr_ratio}: a share from 0 to 1 is needed.")


def trained_parameters(base: Base, heads: Heads | None, kind: str) -> dict[str, nn.Parameter]:
    """What the optimizer moves, by name, in float32; everything else is frozen.

    Raises UserError: a 16-bit base to be trained itself, no heads to train, heads of another base's sizes.
    """
    if kind == "pretrain":
        if base.dtype.itemsize < 4:
            raise UserError(f"objective=pretrain trains the base itself, in base.dtype=float32, not {base.dtype}.")
        base.model.requires_grad_(True)
        return dict(base.model.named_parameters())
    if heads is None:
        raise UserError(f"objective={kind} trains heads, and there are none. Choose a heads=... option.")
    if heads.vocab_size != base.vocab_size or heads.hidden_size != base.hidden_size:
        raise UserError(
            f"The heads are for vocabulary {heads.vocab_size} and hidden size {heads.hidden_size}, the base "
            f"{base.path} has {base.vocab_size} and {base.hidden_size}. Build heads for this base."
        )
    heads.train().requires_grad_(True)
    return dict(heads.named_parameters())


def build_optimizer(parameters: dict[str, nn.Parameter], config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over named parameters; only matrices decay (a bias or norm has nothing to shrink towards)."""
    matrices = [p for p in parameters.values() if p.ndim >= 2]
    others = [p for p in parameters.values() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        fused=True,
    )


def learning_rate(step: int, config: OptimConfig) -> float:
    """The rate of optimizer step `step` (from 0): a straight line up, then half a cosine to min_lr_ratio * lr."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.num_steps - 1 - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.lr * (config.min_lr_ratio + (1 - config.min_lr_ratio) * cosine)


def autocast(config: OptimConfig, device: torch.device) -> AbstractContextManager:
    """bfloat16 products on request; `auto` means on a GPU, where they are faster and lose nothing that matters."""
    if config.autocast == "bf16" or (config.autocast == "auto" and device.type == "cuda"):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()
