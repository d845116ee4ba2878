"""Memory and time of training on this machine, measured before a base is downloaded.

A base of the same sizes with random weights (base.random_base) is trained with for a few steps, by the trainer that
a run has: same heads, adapters, objective, optimizer and precision, on random tokens. Every position of a block is a
label that every head counts, so that no text of this block length takes more. Weights, adapters and what autograd keeps
are those of a run; what is missing is its own text, its evaluation and its saves.
"""

import logging
import statistics
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from euryale.base.base import Base
from euryale.base.families import check_family, context_length
from euryale.base.lora import add_adapter, remove_adapter
from euryale.base.precision import pick_device, pick_dtype, quantization_config
from euryale.base.random_base import random_base
from euryale.base.shape import config_of_shape
from euryale.cli.preflight import check_block, check_memory
from euryale.cli.train_schemas import MeasureConfig, TrainConfig
from euryale.data.random_batches import RandomRows
from euryale.errors import UserError
from euryale.heads.heads import build_heads
from euryale.report.format import duration
from euryale.report.result_file import check_result
from euryale.report.tables import align
from euryale.system.hardware import hardware
from euryale.system.memory import begin_peak, let_go, peak, reserved_peak, resident, used_bytes
from euryale.system.progress import Progress
from euryale.system.units import gigabytes
from euryale.training.objective import OBJECTIVES
from euryale.training.optimizer import check_optimizer
from euryale.training.stages import stage_lengths
from euryale.training.trainer import Trainer

CORE_FLOPS = 3e10  # products and sums a second of one CPU core, roughly
SLOW_STEP_S = 300  # from here on a step is foretold
log = logging.getLogger(__name__)


def check(config: MeasureConfig) -> PreTrainedConfig:
    """The sizes of the base, of which nothing is built here. Raises UserError for what cannot be measured; memory that
    will not do is `check_memory`'s to refuse."""
    config.check()
    check_result(config.output)
    of_base = config_of_shape(config.shape, config.base)
    check_family(of_base, str(config.base.path))
    check_block(config.data, context_length(of_base), "this shape" if config.shape.family else config.base.path)
    device = pick_device(config.base.device)
    quantization_config(config.base.quantization, pick_dtype(config.base.dtype, device, of_base))
    return of_base


def measure(config: MeasureConfig) -> dict[str, Any]:
    """Builds the base once and measures every objective on it; see train/measure.py for what is in the result.

    Raises UserError as `check` does, and for what does not fit, before the base is built.
    """
    of_base = check(config)
    runs = {kind: config.run_of(kind) for kind in dict.fromkeys(config.objectives)}
    needs = {kind: _check_memory(run, of_base) for kind, run in runs.items()}
    device = pick_device(config.base.device)
    check_optimizer(config.optim, device)
    _warn_when_slow(of_base, config, device)
    libraries = resident()
    started = time.monotonic()
    base = random_base(of_base, config.base, config.seed)
    result: dict[str, Any] = {
        "shape": _sizes(base),
        "base": {
            "dtype": str(base.dtype).removeprefix("torch."),
            "quantization": base.quantization,
            "device": str(base.device),
            "build_seconds": time.monotonic() - started,
        },
        "settings": {
            "heads": config.heads.design(),
            "lora": asdict(config.lora),
            "optim": asdict(config.optim),
            "chunk_tokens": config.objective.chunk_tokens,
            "loss": config.objective.loss,
            "batch_size": config.data.batch_size,
            "block_size": config.data.block_size,
            "warm_up": config.warm_up,
            "steps": config.steps,
            "seed": config.seed,
        },
        "objectives": {},
        "hardware": hardware(),
    }
    for kind, run in runs.items():
        try:
            result["objectives"][kind] = _measure(base, run, needs[kind], config.warm_up, config.steps, libraries)
        except torch.OutOfMemoryError as error:  # with check_memory=false, or an estimate that was too low
            raise UserError(
                f"{kind} does not fit: {str(error).splitlines()[0]} Estimated were "
                f"{gigabytes(sum(needs[kind].values()))}. What saves most is a smaller data.block_size or "
                "data.batch_size, optim.gradient_checkpointing=true and base.quantization=nf4."
            ) from error
    _add_run_seconds(result["objectives"], config)
    return result


def table(result: dict[str, Any]) -> str:
    """The result for a person."""
    sizes, base, settings = result["shape"], result["base"], result["settings"]
    optim, machine, is_on_cpu = settings["optim"], result["hardware"], base["device"] == "cpu"
    numbers = base["dtype"] if base["quantization"] == "none" else f"{base['quantization']} and {base['dtype']}"
    blocks = settings["batch_size"] * optim["gradient_accumulation"]
    recompute = "with" if optim["gradient_checkpointing"] else "without"
    about = [
        f"{sizes['architecture']}, {sizes['num_parameters'] / 1e6:,.0f} M random numbers in {numbers}, on "
        f"{machine['cpu'] if is_on_cpu else machine['gpu']}",
        f"a step: {blocks} blocks of {settings['block_size']} tokens, {settings['batch_size']} at a time; "
        f"{optim['name']}, {recompute} gradient checkpointing; the median of {settings['steps']} steps",
    ]
    header = ["objective", "estimated", "peak", *([] if is_on_cpu else ["reserved", "in use"])]
    header += ["tokens/s", "a step", f"{optim['num_steps']} steps"]
    rows = [
        [
            kind,
            gigabytes(found["estimated_total_bytes"]),
            gigabytes(found["peak_bytes"]),
            *([] if is_on_cpu else [gigabytes(found["reserved_bytes"]), gigabytes(found["in_use_bytes"])]),
            f"{found['tokens_per_s']:,.0f}",
            duration(found["step_seconds"]),
            duration(found["run_seconds"]),
        ]
        for kind, found in result["objectives"].items()
    ]
    lines = [*about, "", align(header, rows)]
    if is_on_cpu:
        libraries = next(iter(result["objectives"].values()))["libraries_bytes"]
        lines.append(f"peaks are of the whole process, of which {gigabytes(libraries)} were there before the base")
    else:
        lines.append("peak: torch's tensors; reserved: by its allocator; in use: of the GPU, by everything on it")
    return "\n".join(lines)


def _check_memory(run: TrainConfig, of_base: PreTrainedConfig) -> dict[str, int]:
    try:
        return check_memory(run, of_base, steps_alone=True)
    except UserError as error:
        raise UserError(f"{run.objective.kind}: {error}") from error


def _warn_when_slow(of_base: PreTrainedConfig, config: MeasureConfig, device: torch.device) -> None:
    """A step of an 8B on a CPU is a matter of hours, and nothing is heard of it before it ends."""
    if device.type != "cpu":
        return
    with torch.device("meta"):
        numbers = sum(p.numel() for p in AutoModelForCausalLM.from_config(of_base).parameters())
    tokens = config.data.batch_size * config.data.block_size * config.optim.gradient_accumulation
    seconds = 8 * numbers * tokens / (CORE_FLOPS * torch.get_num_threads())
    if seconds > SLOW_STEP_S:
        log.warning(
            "a step of %s tokens for %.1f B numbers may take %s on this CPU, and %d are asked for an objective. "
            "Smaller: shape=llama_100m, optim.gradient_accumulation=1, data.block_size=256",
            f"{tokens:,}", numbers / 1e9, duration(seconds), config.warm_up + config.steps,
        )  # fmt: skip


def _measure(
    base: Base, run: TrainConfig, need: dict[str, int], warm_up: int, steps: int, libraries: int
) -> dict[str, Any]:
    """Memory and time of one objective; the base is left as it was."""
    kind, device = run.objective.kind, base.device
    let_go(device)
    begin_peak(device)
    heads = build_heads(run.heads, base.lm_head_weight, run.seed)
    if OBJECTIVES[kind].trains_adapter:
        add_adapter(base, run.lora, run.seed)
    # Only tokens that can be drafted are labels, so only those are drawn.
    tokens_V = torch.arange(base.vocab_size) if heads.draft_ids is None else heads.draft_ids.cpu()
    progress = Progress(f"measuring {kind}", warm_up + steps, "steps")
    seconds: list[float] = []
    in_use: list[int] = []
    torch.manual_seed(run.seed)  # what adapters drop
    with tempfile.TemporaryDirectory() as folder:
        rows = RandomRows(tokens_V, run.data.batch_size, run.data.block_size, run.seed)
        trainer = Trainer(base, heads, run.objective, run.optim, rows, [], Path(folder))
        for _ in range(warm_up + steps):
            begin = time.perf_counter()
            result = trainer.train_step()
            if device.type == "cuda":
                torch.cuda.synchronize(device)  # the optimizer is still at work
                in_use.append(used_bytes(device))
            seconds.append(time.perf_counter() - begin)
            progress.advance(tokens=result.tokens)
    progress.close()
    adapters = sum(p.numel() for p in trainer.parameters.values()) - heads.num_parameters()
    remove_adapter(base)
    host, on_device = peak(device)
    total = sum(need.values())
    taken = host - libraries if on_device is None else on_device
    median = statistics.median(seconds[warm_up:])
    return {
        "peak_bytes": host if on_device is None else on_device,
        "reserved_bytes": reserved_peak(device),
        "in_use_bytes": max(in_use, default=None),
        "libraries_bytes": libraries,
        "estimated_bytes": need,
        "estimated_total_bytes": total,
        "peak_over_estimate": taken / total if total else None,
        "tokens_per_s": result.tokens / median,
        "step_seconds": median,
        "all_step_seconds": seconds,
        "tokens_per_step": result.tokens,
        "heads_parameters": heads.num_parameters(),
        "adapter_parameters": adapters,
    }


def _add_run_seconds(objectives: dict[str, dict[str, Any]], config: MeasureConfig) -> None:
    """How long all steps of a run would take: stage one of medusa2 is as quick as medusa1; None where that was not
    measured."""
    for kind, found in objectives.items():
        first_share = config.objective.stage_one_share if OBJECTIVES[kind].trains_adapter else 0.0
        first, second = stage_lengths(config.optim.num_steps, first_share)
        alone = objectives.get("medusa1", {}).get("step_seconds") if first else 0.0
        found["run_seconds"] = None if alone is None else first * alone + second * found["step_seconds"]


def _sizes(base: Base) -> dict[str, Any]:
    config = base.model.config.get_text_config()
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
             "num_key_value_heads", "tie_word_embeddings")  # fmt: skip
    return {
        "architecture": type(base.model).__name__,
        "num_parameters": base.model.num_parameters(),
        **{name: getattr(config, name, None) for name in names},
    }
