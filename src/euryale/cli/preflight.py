"""Checks of a whole training run before its first stage: minutes of work must not end at what a later one refuses."""

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
from euryale.data.sources import SPLITS, build_source, notices
from euryale.errors import UserError
from euryale.heads.checkpoint import check_initial, find_checkpoint
from euryale.regenerate.regenerate import check_settings as check_regeneration
from euryale.system import processes
from euryale.system.files import check_writable
from euryale.system.memory import free_bytes
from euryale.system.paths import output_root
from euryale.system.units import gigabytes
from euryale.training.memory_estimate import MemoryPlan, check_fits, estimate
from euryale.training.objective import OBJECTIVES
from euryale.training.optimizer import check_optimizer
from euryale.training.saves import is_unsaved
from euryale.training.stages import stage_lengths

log = logging.getLogger(__name__)


def check_settings(config: TrainConfig) -> None:
    """Raises UserError for any setting that a stage would refuse.

    The data is opened last, and before any base is: a missing file or an unreachable hub is said at once.
    """
    config.check()  # again: resume= has read others
    if config.data.regenerate and config.data.kind != "regenerated":
        check_writable(output_root(config.regenerate.output), f"regenerate.output={config.regenerate.output}")
    _warn_of_long_warmup(config)
    check_rows(config.data, needs_held_out=config.objective.kind != "pretrain" or config.optim.eval_batches > 0)


def _warn_of_long_warmup(config: TrainConfig) -> None:
    first_share = config.objective.stage_one_share if OBJECTIVES[config.objective.kind].trains_adapter else 1.0
    for stage, num_steps in enumerate(stage_lengths(config.optim.num_steps, first_share), start=1):
        if config.optim.warmup_steps >= num_steps > 0:
            log.warning(
                "optim.warmup_steps=%d, and stage %d has %d steps: the learning rate never comes to its peak",
                config.optim.warmup_steps, stage, num_steps,
            )  # fmt: skip


def settle_init(config: TrainConfig, folder: Path) -> TrainConfig:
    """The settings with the folder that heads.init means. Raises UserError for heads of another base or design.

    A run that goes on from a save of its own has no more need of that folder.
    """
    if config.heads.init is None or (config.resume is not None and not is_unsaved(folder)):
        return config
    found = find_checkpoint(config.heads.init, output_root(config.output), "heads.init").resolve()
    check_initial(found, config.heads, describe_base(config.base).identity())
    return replace(config, heads=replace(config.heads, init=str(found)))


def check_rows(data: DataConfig, needs_held_out: bool, advice: str = "Give more rows") -> None:
    """Reads one row of each split, and says which files of a folder are not read. Raises UserError, with the advice,
    when there is no row, or it cannot be read."""
    if data.kind == "self":  # its rows are yet to be written
        return
    if data.kind == "mix":
        data = replace(data, mix=[part for part in data.mix if dict(part).get("kind") != "self"])
        if not data.mix:
            return
    if needs_held_out and data.held_out_one_in == 0 and data.kind != "mix":
        raise UserError(
            "data.held_out_one_in must be at least 2, because this run measures on rows that are held out; got 0. "
            "20 is usual."
        )
    unshuffled = replace(data, shuffle_window=1)  # else a whole window is read for it
    of_kind = {"files": data.files, "hub": data.repo, "regenerated": data.folder}
    where = of_kind.get(data.kind) or f"data={data.kind}"
    for split in SPLITS if needs_held_out else SPLITS[:1]:
        if next(iter(build_source(unshuffled, split)), None) is None:
            raise UserError(
                f"{where} gives no row for the split {split}, with data.held_out_one_in={data.held_out_one_in} (one "
                f"row in so many, by a hash of the row; 0: none). {advice}, or another number (20 is usual)."
            )
    for notice in notices(data):
        log.info(notice)


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


def check_memory(config: TrainConfig, of_base: PreTrainedConfig | None = None) -> dict[str, int]:
    """What the run will take, bytes by what for, before the base is loaded. Raises UserError when it does not fit.

    `of_base`: the sizes of the base; else they are read.
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
    check_block(
        config.data, context_length(of_base), config.base.path
    )  # before advice on blocks that are too long as well
    # Processes on one machine share its main memory; a GPU belongs to one of them.
    free = free_bytes(device) // (1 if device.type == "cuda" else processes.count_here())
    need = check_fits(plan, free, str(device)) if config.check_memory else estimate(plan)
    log.info(
        "memory for %s: about %s needed (%s), %s free",
        config.objective.kind, gigabytes(need.total), need.describe(), gigabytes(free),
    )  # fmt: skip
    return need._asdict()
