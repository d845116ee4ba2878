"""Checks of a whole training run against its base and the memory, before its first stage: minutes of work must not end
at what a later one refuses."""

import logging
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedConfig

from euryale.base.base import Base
from euryale.base.base_info import describe_base
from euryale.base.families import check_family, context_length
from euryale.base.locate import read_config
from euryale.base.lora import chosen_targets
from euryale.base.precision import pick_device, pick_dtype
from euryale.cli.train_schemas import TrainConfig
from euryale.data.config import DataConfig
from euryale.errors import UserError
from euryale.heads.checkpoint import check_initial
from euryale.heads.find_checkpoint import find_checkpoint
from euryale.regenerate.regenerate import ROWS
from euryale.regenerate.regenerate import check_settings as check_regeneration
from euryale.system import processes
from euryale.system.memory import KEPT, free_bytes, resident
from euryale.system.paths import output_root
from euryale.system.units import gigabytes
from euryale.training.memory_estimate import MemoryPlan, check_fits, estimate
from euryale.training.objective import OBJECTIVES
from euryale.training.optimizer import check_optimizer
from euryale.training.saves import is_unsaved

# Bytes that a process grows by beside what is counted: the tokenizer, what oneDNN keeps, gaps between blocks. Measured.
GROWN = 100 << 20
log = logging.getLogger(__name__)


def settle_init(config: TrainConfig, folder: Path) -> TrainConfig:
    """The settings with the folder that heads.init means. Raises UserError for heads of another base or design.

    A run that goes on from a save of its own has no more need of that folder.
    """
    if config.heads.init is None or (config.resume is not None and not is_unsaved(folder)):
        return config
    found = find_checkpoint(config.heads.init, output_root(config.output), "heads.init").resolve()
    check_initial(found, config.heads, describe_base(config.base).identity())
    return replace(config, heads=replace(config.heads, init=str(found)))


def check_base(base: Base, config: TrainConfig) -> None:
    """Raises UserError for blocks and written text that the base cannot hold, an optimizer that its device lacks, and
    adapters of layers that it does not have."""
    check_block(config.data, base.max_length, base.path)
    if config.data.regenerate and config.data.kind != "regenerated":
        check_regeneration(config.regenerate, base)
    check_optimizer(config.optim, base.device)
    if OBJECTIVES[config.objective.kind].trains_adapter:
        chosen_targets(base.model, config.lora)


def check_block(data: DataConfig, max_length: int, path: str | None) -> None:
    """Raises UserError for blocks that are longer than the context of a base."""
    if data.block_size > max_length:
        raise UserError(
            f"data.block_size={data.block_size} is longer than the context of {path}, which ends at "
            f"{max_length}. Give data.block_size={max_length} or less."
        )


def check_memory(
    config: TrainConfig, of_base: PreTrainedConfig | None = None, steps_alone: bool = False
) -> dict[str, int]:
    """What the run will take, bytes by what for, before the base is loaded. Raises UserError when it does not fit.

    `of_base`: the sizes of the base; else they are read. `steps_alone`: training steps are counted, and neither the
    process nor what is decoded.
    """
    device = pick_device(config.base.device)
    of_base = of_base or read_config(config.base)
    check_family(of_base, str(config.base.path))
    plan = MemoryPlan(
        of_base,
        config.base.quantization,
        pick_dtype(config.base.dtype, device, of_base),
        config.heads,
        config.objective,
        config.lora,
        config.optim,
        config.data.batch_size,
        config.data.block_size,
        device.type == "cuda",
        processes.count() if config.parallel == "fsdp" else 1,
    )
    if not steps_alone:
        plan = _whole_run(plan, config)
    check_block(
        config.data, context_length(of_base), config.base.path
    )  # before advice on blocks that are too long as well
    # Processes on one machine share its main memory; a GPU belongs to one of them.
    free = free_bytes(device) // (1 if device.type == "cuda" else processes.count_here())
    need = check_fits(plan, free, str(device)) if config.check_memory else estimate(plan)
    log.info(
        "memory for %s: about %s at its peak (%s), %s free",
        config.objective.kind, gigabytes(need.total), need.describe(), gigabytes(free),
    )  # fmt: skip
    return need._asdict()


def _whole_run(plan: MemoryPlan, config: TrainConfig) -> MemoryPlan:
    """The plan of training steps with the process around them and the text that the base writes before them."""
    text = config.regenerate
    writes = config.data.regenerate and config.data.kind != "regenerated" and text.url is None
    decodes = config.objective.kind != "pretrain" and config.parallel == "ddp"
    return plan._replace(
        process=0 if plan.is_gpu else resident() + GROWN + KEPT,
        decodes=decodes,
        written_rows=min(text.batch_size, text.num_prompts, ROWS) if writes and decodes else 0,
        written_tokens=(text.prompt_tokens, text.new_tokens),
    )
