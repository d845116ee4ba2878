"""Settings of training: what is learned, how fast, and the shape of a base that is made from nothing."""

import math
import os
from dataclasses import dataclass
from typing import Literal

from euryale.base.config import MOST_LAYERS
from euryale.errors import (
    MOST_AT_ONCE,
    MOST_ROWS,
    MOST_TOKENS,
    UserError,
    check_least,
    check_option,
    check_share,
    check_within,
)
from euryale.training.stages import SCHEDULES

KINDS = ("medusa1", "medusa2", "pretrain")  # objective.py
LOSSES = ("kl", "ce", "lk")  # losses.py
# Name -> the class of bitsandbytes; torch's AdamW, or Muon, for none. Paged moments live where a GPU can swap them out.
OPTIMIZERS = {
    "adamw": None,
    "muon": None,
    "adamw_8bit": "AdamW8bit",
    "paged_adamw": "PagedAdamW32bit",
    "paged_adamw_8bit": "PagedAdamW8bit",
}
WANDB_MODES = ("off", "auto", "offline", "online")
AUTOCASTS = ("auto", "none", "bf16", "fast")
SPECIAL = ["<s>", "</s>", "<pad>"]  # tokens of a new base
_NUM_BYTES = 256  # each is a token of a new base, too


@dataclass
class ObjectiveConfig:
    """What is learned; the values in conf/objective are the documented defaults."""

    kind: str = "medusa1"
    loss: str = "kl"
    chunk_tokens: int = 512
    stage_one_share: float = 0.5
    lambda_0: float = 0.2
    lambda_schedule: str = "constant"
    heads_lr_multiplier: float = 4.0

    @property
    def has_two_stages(self) -> bool:
        """Heads first, then heads and adapters together."""
        return self.kind == "medusa2"

    def check(self) -> None:
        """Raises UserError for a value that does not exist."""
        for name, value, options in (
            ("kind", self.kind, KINDS),
            ("loss", self.loss, LOSSES),
            ("lambda_schedule", self.lambda_schedule, SCHEDULES),
        ):
            check_option(f"objective.{name}", value, options)
        check_least(1, "objective.", chunk_tokens=self.chunk_tokens)
        if not 0 <= self.stage_one_share < 1:
            raise UserError(
                f"objective.stage_one_share must be from 0 to below 1; got {self.stage_one_share}. For heads alone "
                "use objective=medusa1."
            )
        for name in ("lambda_0", "heads_lr_multiplier"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"objective.{name} must be positive; got {getattr(self, name)}.")


@dataclass
class OptimConfig:
    """The pace of a run; the values in conf/optim are the documented defaults."""

    name: str = "muon"
    lr: float = 0.02
    adamw_lr: float = 3e-3
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95
    warmup_steps: int = 20
    num_steps: int = 500
    min_lr_ratio: float = 0.05
    gradient_accumulation: int = 1
    max_grad_norm: float = 1.0
    autocast: str = "auto"
    gradient_checkpointing: bool = False
    eval_every: int = 200
    eval_batches: int = 8
    save_every: int = 200
    log_every: int = 10

    def check(self) -> None:
        """Raises UserError for a value that cannot be trained with."""
        check_option("optim.name", self.name, OPTIMIZERS)
        check_option("optim.autocast", self.autocast, AUTOCASTS)
        check_within(1, MOST_ROWS, "optim.", num_steps=self.num_steps)
        check_within(1, MOST_AT_ONCE, "optim.", gradient_accumulation=self.gradient_accumulation)
        check_within(0, MOST_AT_ONCE, "optim.", eval_batches=self.eval_batches)  # all are held in memory
        check_least(1, "optim.", log_every=self.log_every)
        can_be_off = ("weight_decay", "warmup_steps", "max_grad_norm", "eval_every", "save_every")
        check_least(0, "optim.", **{name: getattr(self, name) for name in can_be_off})
        for name in ("lr", "adamw_lr"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"optim.{name} must be a positive learning rate; got {getattr(self, name)}.")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"optim.{name} must be from 0 to below 1; got {getattr(self, name)}.")
        check_share("optim.min_lr_ratio", self.min_lr_ratio)


@dataclass
class ScratchConfig:
    """The shape of a base that is pretrained from nothing; not used unless `enabled`."""

    enabled: bool = False
    vocab_size: int = 1024
    hidden_size: int = 256
    intermediate_size: int = 768
    num_layers: int = 6
    num_heads: int = 8
    num_kv_heads: int = 4
    max_length: int = 1024

    def check(self) -> None:
        """Raises UserError for sizes out of range."""
        check_within(1, MOST_TOKENS, "scratch.", vocab_size=self.vocab_size)
        smallest = len(SPECIAL) + _NUM_BYTES
        if self.vocab_size < smallest:
            raise UserError(f"scratch.vocab_size must be at least {smallest} (bytes, special); got {self.vocab_size}.")
        sizes = ("hidden_size", "intermediate_size", "num_heads", "num_kv_heads", "max_length")
        check_within(1, MOST_TOKENS, "scratch.", **{name: getattr(self, name) for name in sizes})
        check_within(1, MOST_LAYERS, "scratch.", num_layers=self.num_layers)
        if self.hidden_size % (2 * self.num_heads) or self.num_heads % self.num_kv_heads:
            raise UserError(
                f"scratch.hidden_size={self.hidden_size} must be an even multiple of num_heads={self.num_heads} "
                f"(positions turn pairs), and that a multiple of num_kv_heads={self.num_kv_heads}."
            )


def wandb_mode(asked: str) -> Literal["offline", "online"] | None:
    """What wandb is started with; None is not at all. Without a key, online would hang for over a minute."""
    check_option("wandb", asked, WANDB_MODES)
    if asked == "off":
        return None
    has_key = bool(os.environ.get("WANDB_API_KEY"))
    if asked == "online" and not has_key:
        raise UserError("wandb=online needs a key in WANDB_API_KEY; got none. Set it, or use wandb=offline.")
    return "online" if has_key and asked != "offline" else "offline"
