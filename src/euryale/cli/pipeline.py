"""Stages of train/run.py, in their order: from a config to a measured checkpoint.

text (the base writes it) -> heads (trained) -> tree (calibrated) -> numbers (decoded, timed, reported)
"""

import logging
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from euryale.base.base import Base, load_base, pick_device
from euryale.base.fsdp import shard_base
from euryale.base.lora import add_adapter, remove_adapter
from euryale.cli.open_engine import open_base
from euryale.cli.preflight import check_base, check_memory
from euryale.cli.run_folder import save_settings, settings_of
from euryale.cli.schemas import CalibrateScriptConfig
from euryale.cli.train_schemas import TrainConfig
from euryale.data.batches import build_batches
from euryale.data.config import DataConfig
from euryale.data.distributed import Dealt
from euryale.data.row_prompts import Opening
from euryale.data.sources import build_source
from euryale.data.token_counts import count_tokens
from euryale.decoding.engine import Engine
from euryale.decoding.sampling import Sampling
from euryale.decoding.tree.calibration import read_calibrations, tree_name
from euryale.evaluation.bench import bench
from euryale.evaluation.breadth import can_answer, measure_breadth
from euryale.evaluation.calibrate import calibrate
from euryale.evaluation.config import BenchSettings
from euryale.evaluation.evaluate import evaluate_text
from euryale.evaluation.prompts import check_prompts, load_openings
from euryale.evaluation.repetition import LOOPING_SHARE
from euryale.evaluation.threads import use_fastest_threads
from euryale.heads.checkpoint import load_heads, load_initial, read_description
from euryale.heads.find_checkpoint import DESCRIPTION, find_checkpoint
from euryale.heads.heads import Heads, build_heads
from euryale.report.ranking import RESULT_FILE, numbers_of
from euryale.system import processes
from euryale.system.files import write_json
from euryale.system.hardware import hardware
from euryale.system.memory import begin_peak, let_go, peak
from euryale.system.paths import PROJECT, argument
from euryale.system.provenance import provenance
from euryale.training.new_base import make_base, shape_of
from euryale.training.objective import OBJECTIVES
from euryale.training.trainer import Trainer

log = logging.getLogger(__name__)


def load(config: TrainConfig) -> Base:
    """The base: whole in every process, or (parallel=fsdp) divided among them."""
    device = pick_device(config.base.device)
    begin_peak(device)
    if config.parallel == "ddp":
        return load_base(config.base)
    dtype = "bfloat16" if config.base.dtype == "auto" and device.type == "cuda" else config.base.dtype
    base = load_base(replace(config.base, device="cpu", dtype=dtype))
    shard_base(base, device)
    return base


def make_heads(base: Base, data: DataConfig, config: TrainConfig, folder: Path) -> Heads:
    """The heads that training begins with: those of heads.init, or fresh ones, whose draft vocabulary is what is
    frequent in the first part of the training text."""
    if config.heads.init is not None:  # a run that goes on has published them in its own folder
        return load_initial(folder if (folder / DESCRIPTION).is_file() else Path(config.heads.init), base)
    heads = build_heads(config.heads, base.lm_head_weight, config.seed)
    if heads.draft_ids is not None:
        rows = build_source(data, "train")
        heads.choose_draft_ids(count_tokens(rows, base.tokenizer, base.vocab_size, data.on_error))
    return heads


def pretrain(config: TrainConfig, folder: Path) -> dict[str, object]:
    """Trains the base itself (recipe=pretrain_tiny) and leaves it in `folder`/base."""
    base_config, shape, initial = config.base, None, folder / "initial"
    if config.scratch.enabled:
        base_config, shape = replace(base_config, path=str(initial)), shape_of(config.scratch)
    processes.first(lambda: check_memory(replace(config, base=base_config), shape))
    if config.scratch.enabled:
        rows = build_source(config.data, "train")
        processes.first(lambda: make_base(config.scratch, rows, initial, config.seed))
    begin_peak(pick_device(base_config.device))
    base = load_base(base_config)
    check_base(base, config)
    trained = train(base, None, config.data, config, folder)
    loss = trained.get("held_out_loss_nats")  # optim.eval_batches=0 measures none
    if processes.is_first():
        write_json(folder / RESULT_FILE, {"held_out_loss_nats": loss})
        print(f"the base is in {folder / 'base'}" + (f"; held-out loss {loss:.3f} nats a token" if loss else ""))
    return {"checkpoint": str(folder / "base"), "held_out_loss_nats": loss, "metric": loss}


def train(base: Base, heads: Heads | None, data: DataConfig, config: TrainConfig, folder: Path) -> dict[str, object]:
    """Trains into `folder`, or goes on there; returns the trainer's last metrics."""
    let_go(base.device)  # what writing text has left
    settings: dict[str, object] = {"data": settings_of(data), "seed": config.seed}
    if heads is not None and config.heads.init is not None:
        settings["heads"] = {"init": config.heads.init}
    if OBJECTIVES[config.objective.kind].trains_adapter:
        add_adapter(base, config.lora, config.seed)
        settings["lora"] = settings_of(config.lora)
    # What adapters drop; a run that goes on restores its own state.
    torch.manual_seed(config.seed + processes.number())
    whole = build_batches(data, "train", base.tokenizer, base.vocab_size)
    stream = Dealt(whole, processes.number(), processes.count()) if processes.count() > 1 else whole
    held_out_stream = build_batches(data, "held_out", base.tokenizer, base.vocab_size)
    held_out = list(islice(held_out_stream, config.optim.eval_batches))
    trainer = Trainer(
        base,
        heads,
        config.objective,
        config.optim,
        stream,
        held_out,
        folder,
        settings=settings,
        resume=config.resume is not None,
        wandb=config.wandb,
    )
    if processes.is_first():
        save_settings(config, folder)
    return trainer.fit()


def measure(
    base: Base,
    trained: dict[str, Any],
    openings: list[Opening],
    prompts: list[list[int]],
    config: TrainConfig,
    folder: Path,
) -> dict[str, Any]:
    """Calibrates a tree on the openings, decodes and times the prompts; writes tree.json, report, card and plots."""
    remove_adapter(base)
    heads = load_heads(folder, base)  # what was saved, in the base's dtype: what a user of the folder gets
    if config.threads == 0 and not config.deterministic:
        use_fastest_threads(base)
    content = calibrate(base, heads, openings, config.calibrate)
    write_json(folder / tree_name(base.quantization), content)
    engine = Engine(base, heads, calibrations=read_calibrations(folder, base.quantization))
    temperature = headline_temperature(content, config.evaluate.temperature)
    max_new_tokens, seed = config.evaluate.max_new_tokens, config.seed
    sampling, repeats = Sampling(temperature), config.evaluate.repeats
    settings = BenchSettings(repeats=repeats, max_new_tokens=max_new_tokens, sampling=sampling, seed=seed)
    evaluation = evaluate_text(engine, prompts, max_new_tokens, seed=seed, temperature=temperature)
    on_host, on_device = peak(base.device)  # before `bench`, which counts anew for each contender
    peak_bytes = max(trained["peak_memory_bytes"], on_host if on_device is None else on_device)
    adapted = {}
    if OBJECTIVES[config.objective.kind].trains_adapter:
        adapted = {"adapter": settings_of(config.lora), "base_kl_nats": trained.get("held_out_base_kl_nats")}
    report = {
        "base": base.identity() | {"dtype": str(base.dtype).removeprefix("torch.")},
        "heads": heads.config.design() | {"num_parameters": heads.num_parameters()},
        "training": {
            "steps": trained["step"],
            "tokens": trained["tokens"],
            "seconds": trained["seconds"],
            "final_loss_nats": trained.get("held_out_loss_nats"),
            "masked_batches": trained["masked_batches"],
            **adapted,
        },
        "memory": {"estimated_bytes": trained["estimated_memory"], "peak_bytes": peak_bytes},
        "accuracy": accuracy_rows(trained),
        "calibration": content,
        "evaluation": evaluation,
        "bench": bench(engine, prompts, settings),
        **_breadth(engine, config, temperature),
        "hardware": hardware(),
        "provenance": provenance(),
    }
    from euryale.report.report import save_report  # here: a refusal does not wait for matplotlib

    save_report(folder, report)
    return report


def _breadth(engine: Engine, config: TrainConfig, temperature: float) -> dict[str, Any]:
    """The report's section `breadth`, where it is asked for and the base has a chat template to be asked through."""
    if config.evaluate.breadth_prompts == 0 or not can_answer(engine.base):
        return {}
    return {"breadth": measure_breadth(engine, config.evaluate.breadth_prompts, temperature, config.seed)}


def recalibrate(config: CalibrateScriptConfig) -> tuple[Path, dict[str, Any]]:
    """Counts and times anew for a checkpoint, and writes its tree.json; the folder and the new content."""
    folder = find_checkpoint(config.checkpoint, PROJECT / "checkpoints")
    description = read_description(folder)
    check_prompts(config.prompts, config.data, description)
    base = open_base(config.base, description)
    heads = load_heads(folder, base)
    if config.threads == 0:
        use_fastest_threads(base)
    openings = load_openings(base, config.prompts, config.calibrate, description, config.data)
    content = calibrate(base, heads, openings, config.calibrate, config.coupled)
    write_json(folder / tree_name(base.quantization), content)
    return folder, content


def headline(report: dict[str, Any], folder: Path, metric: str) -> dict[str, object]:
    """What the last line on stdout says, and `metric`, by which a sweep ranks its jobs. UserError: no such number."""
    numbers = {"checkpoint": str(folder)} | numbers_of(report)
    return numbers | {"metric": numbers[metric]}


def headline_unmeasured(trained: dict[str, Any], folder: Path) -> dict[str, object]:
    """The last line of a run whose base no process holds whole: there is nothing to decode with."""
    named = argument("checkpoint", folder)
    print(
        "The heads are trained; no process holds the whole base, so nothing was decoded with them. On a machine that "
        f"holds it: python infer/calibrate.py {named}, then python infer/bench.py {named}"
    )
    loss = trained.get("held_out_loss_nats")
    write_json(folder / RESULT_FILE, {"held_out_loss_nats": loss})
    return {"checkpoint": str(folder), "held_out_loss_nats": loss, "metric": loss}


def headline_temperature(calibration: dict[str, Any], asked: float | None) -> float:
    """T = 0, unless greedy text loops: repeated text flatters every drafter, so it is then sampled."""
    if asked is not None:
        return asked
    entries = {entry["temperature"]: entry for entry in calibration["calibrations"]}
    greedy = entries.get(0.0)
    sampled = [t for t in entries if t > 0]
    if greedy is None or greedy["repeated_8grams"] <= LOOPING_SHARE or not sampled:
        return 0.0
    log.warning(
        "greedy text of this base repeats itself (%.0f%% of its 8-grams): measuring at temperature %s instead",
        100 * greedy["repeated_8grams"],
        sampled[0],
    )
    return sampled[0]


def accuracy_rows(trained: dict[str, Any]) -> list[dict[str, float]]:
    """The trainer's held-out accuracies, one row a head."""
    tops = {rank: trained.get(f"held_out_head_top{rank}", []) for rank in (1, 5, 10)}
    return [{"head": k, **{f"top{rank}": shares[k] for rank, shares in tops.items()}} for k in range(len(tops[1]))]
