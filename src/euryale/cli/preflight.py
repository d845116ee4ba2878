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
from euryale.cli.schemas import TrainConfig
from euryale.data.sources import SPLITS, DataConfig, build_source, notices
from euryale.data.sources import check as check_data
from euryale.decoding.sampling import Sampling
from euryale.errors import UserError, check_least, check_option
from euryale.evaluation.breadth import MEASURED_A_KIND
from euryale.evaluation.calibrate import check as check_calibration
from euryale.heads.checkpoint import check_initial, find_checkpoint
from euryale.regenerate.regenerate import check_settings as check_regeneration
from euryale.report.ranking import check_metric
from euryale.system import processes
from euryale.system.files import check_writable
from euryale.system.memory import free_bytes, gigabytes
from euryale.system.paths import output_root
from euryale.training.memory_estimate import MemoryPlan, check_fits, estimate
from euryale.training.metrics_log import wandb_mode
from euryale.training.objective import OBJECTIVES
from euryale.training.optimizer import check_optimizer
from euryale.training.resume import is_unsaved
from euryale.training.stages import stage_lengths

MAX_SEED = 2**62  # rows and prompts are numbered upwards from a seed, and noise takes 63 bits
PARALLEL = ("ddp", "fsdp")
log = logging.getLogger(__name__)


def check_settings(config: TrainConfig) -> None:
    """Raises UserError for any setting that a stage would refuse.

    The data is opened last, and before any base is: a missing file or an unreachable hub is said at once.
    """
    is_pretraining = config.objective.kind == "pretrain"
    check_data(config.data)
    for part in (config.heads, config.objective, config.lora, config.optim):
        part.check()
    check_calibration(config.calibrate)
    wandb_mode(config.wandb)
    _check_measuring(config)
    _check_seeds(config)
    if config.scratch.enabled:
        config.scratch.check()
        if not is_pretraining:
            raise UserError("scratch.enabled=true makes a base to be pretrained. Use recipe=pretrain_tiny, or false.")
    check_parallel(config)
    if is_pretraining and config.heads.init is not None:
        raise UserError("heads.init names heads, and objective=pretrain trains none. Leave it out.")
    if is_pretraining and config.optim.name == "muon":
        raise UserError("optim=muon moves the matrices of heads, and objective=pretrain has none. Add optim=adamw.")
    if not is_pretraining and config.calibrate.new_tokens < config.heads.num_heads:
        raise UserError(
            f"calibrate.new_tokens must be at least heads.num_heads={config.heads.num_heads}, to see all heads at "
            f"work; got {config.calibrate.new_tokens}."
        )
    if config.data.regenerate and config.data.kind != "regenerated":
        config.regenerate.check()
        check_writable(output_root(config.regenerate.output), f"regenerate.output={config.regenerate.output}")
    _warn_of_long_warmup(config)
    check_rows(config.data, needs_held_out=not is_pretraining or config.optim.eval_batches > 0)


def _check_measuring(config: TrainConfig) -> None:
    """Raises UserError for settings of the run's own evaluation, and a metric that it will not have."""
    check_metric(config.metric)
    if config.metric == "tau_16" and 16 not in config.calibrate.node_counts:
        raise UserError(
            "metric=tau_16 is counted for a tree of 16 nodes; there is none in "
            f"calibrate.node_counts={config.calibrate.node_counts}. Add 16, or rank by metric=tau."
        )
    positive = ("num_prompts", "max_new_tokens", "repeats")
    check_least(1, "evaluate.", **{name: getattr(config.evaluate, name) for name in positive})
    if not 0 <= config.evaluate.breadth_prompts <= MEASURED_A_KIND:
        raise UserError(
            f"evaluate.breadth_prompts must be from 0 to {MEASURED_A_KIND}, the prompts of a kind that are not "
            f"calibrated on; got {config.evaluate.breadth_prompts}."
        )
    Sampling(config.evaluate.temperature or 0.0)


def _check_seeds(config: TrainConfig) -> None:
    seeds = {"seed": config.seed, "regenerate.seed": config.regenerate.seed, "calibrate.seed": config.calibrate.seed}
    for name, seed in seeds.items():
        if not 0 <= seed < MAX_SEED:
            raise UserError(f"{name} must be a whole number from 0 to 2**62 - 1; got {seed}.")


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


def check_parallel(config: TrainConfig) -> None:
    """Raises UserError for what a divided base (parallel=fsdp) cannot do: it trains heads, and writes nothing."""
    check_option("parallel", config.parallel, PARALLEL)
    if config.parallel == "ddp":
        return
    if processes.count() == 1:
        raise UserError(
            "parallel=fsdp divides the base among processes, and there is one. Start several: torchrun "
            "--nproc_per_node=N train/run.py ..., or use parallel=ddp."
        )
    if config.objective.kind != "medusa1":
        raise UserError(
            f"parallel=fsdp trains heads of a frozen base: objective must be medusa1; got {config.objective.kind}. "
            "Adapters and bases are trained with parallel=ddp, where every process holds the base "
            "(base.quantization=nf4 makes it small)."
        )
    if config.base.quantization != "none":
        raise UserError(
            f"parallel=fsdp cannot divide a base with base.quantization={config.base.quantization}. Use parallel=ddp "
            "(a 4-bit base is a quarter of the size), or base.quantization=none."
        )
    if config.data.regenerate and config.data.kind != "regenerated" and config.regenerate.url is None:
        raise UserError(
            "parallel=fsdp: no process holds the whole base, so it cannot write its training text. Let a server of the "
            "base write it (regenerate.url=http://HOST:8000/v1), or train on a set that is there (data=regenerated), "
            "or on the rows themselves (data.regenerate=false)."
        )


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
