"""One training step on random tokens, before hours of writing text: what would fail later fails at once.

Block and batch size, heads, adapters, objective, optimizer and dtypes are those of the run; of medusa2 it is the second
stage, which takes the most memory. The base and the random states are left as they were.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from euryale.base.base import Base
from euryale.base.config import LoraConfig
from euryale.base.lora import add_adapter, learning, remove_adapter
from euryale.data.config import DataConfig
from euryale.data.random_batches import RandomRows
from euryale.errors import UserError
from euryale.heads.config import HeadsConfig
from euryale.heads.heads import build_heads
from euryale.training.config import ObjectiveConfig, OptimConfig
from euryale.training.objective import OBJECTIVES
from euryale.training.optimizer import autocast, build_optimizer, trained_parameters
from euryale.training.stages import Stage


def try_step(
    base: Base,
    heads_config: HeadsConfig,
    objective: ObjectiveConfig,
    lora: LoraConfig,
    optim: OptimConfig,
    data: DataConfig,
) -> None:
    """Takes one step with fresh heads and forgets it. Raises UserError with the reason why training would fail."""
    trial = f"a trial step of training ({data.batch_size} x {data.block_size} random tokens), before text is written,"
    with _explained(trial, base, optim):
        heads = build_heads(heads_config, base.lm_head_weight)
        if OBJECTIVES[objective.kind].trains_adapter:
            add_adapter(base, lora)
        parameters = trained_parameters(base, heads, objective.kind)
        optimizer = build_optimizer(parameters, optim, blocks=heads.blocks_of_matrices())
        # Only tokens that can be drafted are labels, so only those are drawn.
        tokens_V = torch.arange(base.vocab_size) if heads.draft_ids is None else heads.draft_ids.cpu()
        batch = next(RandomRows(tokens_V, data.batch_size, data.block_size, seed=0))
        with learning(base, optim.gradient_checkpointing):
            with autocast(optim, base.device):
                sums = OBJECTIVES[objective.kind].loss(base, heads, batch, objective, Stage(2, 0, 1))
            sums.loss.backward()
        optimizer.step()
        loss = float(sums.loss.detach())
    if not math.isfinite(loss):
        raise UserError(
            f"{trial} gave a loss that is not finite ({loss}). Check the weights of {base.path}; where base.dtype is "
            "float16, use bfloat16 or float32."
        )


@contextmanager
def _explained(trial: str, base: Base, optim: OptimConfig) -> Iterator[None]:
    """Turns what a step fails of into one message, and leaves the base and the random states as they were."""
    try:
        with torch.random.fork_rng(devices=[base.device] if base.device.type == "cuda" else []):
            yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise UserError(
            f"{trial} ran out of memory: {_first_line(error)} What saves most is a smaller data.block_size or "
            "data.batch_size, optim.gradient_checkpointing=true and base.quantization=nf4."
        ) from error
    except RuntimeError as error:  # what torch raises for dtypes, devices and kernels that do not go together
        raise UserError(
            f"{trial} failed: {_first_line(error)} Check base.dtype={str(base.dtype).removeprefix('torch.')}, "
            f"base.quantization={base.quantization} and optim.autocast={optim.autocast}."
        ) from error
    finally:
        remove_adapter(base)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".") + "."
