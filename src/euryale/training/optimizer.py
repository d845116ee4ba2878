"""Trained weights, and how they are moved: optimizer, learning rate of each step, autocast."""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from euryale.base.base import Base
from euryale.base.lora import adapter_parameters
from euryale.base.precision import bfloat16_speedup
from euryale.errors import UserError
from euryale.heads.heads import Heads
from euryale.training.config import OPTIMIZERS, OptimConfig
from euryale.training.muon import MuonAndAdamW
from euryale.training.objective import OBJECTIVES

ADAPTER_PREFIX = "adapter."


def trained_parameters(base: Base, heads: Heads | None, kind: str) -> dict[str, nn.Parameter]:
    """What the optimizer moves, by name, in float32; everything else is frozen.

    Raises UserError: a 16-bit base to be trained itself, no heads to train, heads of another base's sizes.
    """
    if kind == "pretrain":
        if base.dtype.itemsize < 4:
            raise UserError(f"objective=pretrain needs base.dtype=float32; got {base.dtype}.")
        base.model.requires_grad_(True)
        return dict(base.model.named_parameters())
    if heads is None:
        raise UserError(f"objective={kind} trains heads; got none. Choose a heads=... option.")
    if heads.vocab_size != base.vocab_size or heads.hidden_size != base.hidden_size:
        raise UserError(
            f"The heads are for vocabulary {heads.vocab_size} and hidden size {heads.hidden_size}, the base "
            f"{base.path} has {base.vocab_size} and {base.hidden_size}. Build heads for this base."
        )
    heads.train().requires_grad_(True)
    parameters = dict(heads.named_parameters())
    if OBJECTIVES[kind].trains_adapter:
        parameters |= {ADAPTER_PREFIX + name: p for name, p in adapter_parameters(base).items()}
    return parameters


def build_optimizer(
    parameters: dict[str, nn.Parameter],
    config: OptimConfig,
    heads_multiplier: float = 1.0,
    blocks: Mapping[str, int] | None = None,
) -> torch.optim.Optimizer:
    """The optimizer over named parameters; only matrices decay (a bias or norm has nothing to shrink towards).

    With adapters all of the heads, biases included, learn at `heads_multiplier` times the rate (`lr_multiplier` of a
    group). `blocks` are the matrices that Muon can move (Heads.blocks_of_matrices); everything else is then AdamW's.
    Raises UserError for an optimizer that this device, or this installation, does not have.
    """
    if config.name == "muon":
        return _muon(parameters, config, heads_multiplier, blocks or {})
    groups = []
    for is_adapter in (False, True):
        chosen = [p for name, p in parameters.items() if name.startswith(ADAPTER_PREFIX) == is_adapter]
        multiplier = 1.0 if is_adapter else heads_multiplier
        for is_matrix, decay in ((True, config.weight_decay), (False, 0.0)):
            group = [p for p in chosen if (p.ndim >= 2) == is_matrix]
            if group:
                groups.append({"params": group, "weight_decay": decay, "lr_multiplier": multiplier})
    betas = (config.beta1, config.beta2)
    if OPTIMIZERS[config.name] is None:
        return torch.optim.AdamW(groups, lr=config.lr, betas=betas, fused=True)
    device = next(iter(parameters.values())).device
    return _bitsandbytes_optimizer(config.name, device)(groups, lr=config.lr, betas=betas)


def _muon(
    parameters: dict[str, nn.Parameter], config: OptimConfig, heads_multiplier: float, blocks: Mapping[str, int]
) -> MuonAndAdamW:
    """optim.lr is the rate of the heads' matrices, optim.adamw_lr that of all else; adapters keep their distance."""
    if not blocks:
        raise UserError("optim=muon moves the matrices of heads; this run trains none. Use optim=adamw.")
    groups: dict[tuple[int, float], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        others = config.adamw_lr / (heads_multiplier if name.startswith(ADAPTER_PREFIX) else 1.0)
        key = (blocks[name], config.lr) if name in blocks else (0, others)
        groups.setdefault(key, []).append(parameter)
    described = [
        {
            "params": members,
            "blocks": num,
            "lr_multiplier": rate / config.lr,
            "weight_decay": config.weight_decay * bool(num),
        }
        for (num, rate), members in groups.items()
    ]
    return MuonAndAdamW(described, config.lr, betas=(config.beta1, config.beta2))


def check_optimizer(config: OptimConfig, device: torch.device) -> None:
    """Raises UserError for an optimizer that this device, or this installation, does not have."""
    if OPTIMIZERS[config.name] is not None:
        _bitsandbytes_optimizer(config.name, device)


def _bitsandbytes_optimizer(name: str, device: torch.device) -> Callable[..., torch.optim.Optimizer]:
    if name.startswith("paged") and device.type != "cuda":
        raise UserError(
            f"optim.name={name} keeps its moments in memory that a CUDA GPU pages in and out, and this run is on "
            f"{device.type}. Use optim.name=adamw_8bit or adamw here."
        )
    try:
        import bitsandbytes  # optional: only these optimizers and a 4-bit base need it
    except ImportError as error:
        raise UserError(f"optim.name={name} needs bitsandbytes: pip install 'euryale[train]'.") from error
    return getattr(bitsandbytes.optim, str(OPTIMIZERS[name]))


def moments(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
    """What the optimizer remembers of a parameter, by name; empty before its first step."""
    state = optimizer.state.get(parameter, {})
    # bitsandbytes' code books are constants, and the same tensor for all parameters
    return {key: torch.as_tensor(value) for key, value in state.items() if not key.startswith("qmap")}


def restore_moments(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, saved: dict[str, Tensor]) -> None:
    """The inverse of moments, on the parameter's device."""
    if isinstance(optimizer, (torch.optim.AdamW, MuonAndAdamW)):
        optimizer.state[parameter] = {key: t.to(parameter.device, copy=True) for key, t in saved.items()}
        return
    # bitsandbytes lays out its own memory, some of it paged: that is filled, not replaced.
    paged: Any = optimizer
    for g, group in enumerate(optimizer.param_groups):
        for p, candidate in enumerate(group["params"]):
            if candidate is parameter:
                paged.init_state(group, parameter, g, p)
    state = optimizer.state[parameter]
    for key, tensor in saved.items():
        if isinstance(state[key], Tensor):
            state[key].copy_(tensor)
        else:
            state[key] = tensor.item()


def learning_rate(step: int, config: OptimConfig, num_steps: int | None = None) -> float:
    """The rate of step `step` (from 0) of a stage of `num_steps` (None: the whole run): a straight line up, then half
    a cosine to min_lr_ratio * lr."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, (num_steps or config.num_steps) - 1 - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.lr * (config.min_lr_ratio + (1 - config.min_lr_ratio) * cosine)


def autocast(config: OptimConfig, device: torch.device) -> AbstractContextManager:
    """bfloat16 products on request; `auto` means on a GPU, where they are faster and lose nothing that matters, `fast`
    also on a processor that multiplies them faster than float32."""
    is_faster = device.type == "cuda" or (config.autocast == "fast" and bfloat16_speedup() > 1.0)
    if config.autocast == "bf16" or (config.autocast in ("auto", "fast") and is_faster):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()
