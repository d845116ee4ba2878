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
from euryale.base.base_info import UnloadedBase, describe_base
from euryale.base.fsdp import shard_base
from euryale.base.lora import add_adapter, remove_adapter
from euryale.cli.open_engine import open_base
from euryale.cli.preflight import check_base, check_memory
from euryale.cli.run_folder import save_settings, settings_of
from euryale.cli.schemas import CalibrateScriptConfig, RegenerateScriptConfig, TrainConfig
from euryale.data.batches import build_batches
from euryale.data.distributed import Dealt
from euryale.data.row_prompts import Opening
from euryale.data.sources import DataConfig, build_source
from euryale.data.token_counts import count_tokens
from euryale.decoding.engine import Engine
from euryale.decoding.tree.calibration import TREE_FILE, read_calibrations
from euryale.errors import UserError
from euryale.evaluation.bench import BenchSettings, bench
from euryale.evaluation.calibrate import calibrate
from euryale.evaluation.calibrate import check as check_calibration
from euryale.evaluation.evaluate import evaluate_text
from euryale.evaluation.prompts import check_prompts, choose_data, fit_prompts, held_out_openings, load_prompts
from euryale.evaluation.repetition import LOOPING_SHARE
from euryale.evaluation.threads import use_fastest_threads
from euryale.heads.checkpoint import DESCRIPTION, find_checkpoint, load_heads, load_initial, read_description
from euryale.heads.heads import Heads, build_heads
from euryale.regenerate.config import RegenerateConfig
from euryale.regenerate.manifest import check_written
from euryale.regenerate.questions import QuestionSettings, write_questions
from euryale.regenerate.regenerate import regenerate
from euryale.report.ranking import RESULT_FILE, numbers_of
from euryale.report.report import save_report
from euryale.system import processes
from euryale.system.files import write_json
from euryale.system.hardware import hardware
from euryale.system.paths import PROJECT, output_root
from euryale.system.provenance import provenance
from euryale.training.new_base import make_base
from euryale.training.objective import OBJECTIVES
from euryale.training.trainer import Trainer
from euryale.training.trial import try_step

log = logging.getLogger(__name__)


def load(config: TrainConfig) -> Base:
    """The base: whole in every process, or (parallel=fsdp) divided among them."""
    if config.parallel == "ddp":
        return load_base(config.base)
    device = pick_device(config.base.device)
    dtype = "bfloat16" if config.base.dtype == "auto" and device.type == "cuda" else config.base.dtype
    base = load_base(replace(config.base, device="cpu", dtype=dtype))
    shard_base(base, device)
    return base


def draw_prompts(base: Base, config: TrainConfig) -> tuple[list[Opening], list[list[int]]]:
    """Held-out openings to calibrate on, and other prompts to measure on. Drawn before anything is trained.

    Raises UserError when there are too few, or none that leaves room for an answer.
    """
    wanted = max(config.calibrate.num_prompts, config.evaluate.num_prompts)
    to_calibrate, to_measure = held_out_openings(base, config.data, wanted, config.calibrate.prompt_tokens)
    if not to_measure:
        raise UserError(
            "the held-out rows give a single prompt, and two are the least: one to calibrate on, another to measure "
            f"on. Give more rows, or a smaller data.held_out_one_in than {config.data.held_out_one_in}."
        )
    prompts = fit_prompts(
        base,
        (opening.ids for opening in to_measure),
        config.evaluate.num_prompts,
        config.evaluate.max_new_tokens,
        "the held-out rows",
    )
    return to_calibrate[: config.calibrate.num_prompts], prompts


def with_questions(base: Base, config: TrainConfig) -> TrainConfig:
    """The same settings with data=self, or such parts of a mixture, in the place of the file of questions."""
    return replace(config, data=written_questions(base, config.data, config.regenerate))


def written_questions(base: Base | UnloadedBase, data: DataConfig, config: RegenerateConfig) -> DataConfig:
    """Data of kind self become the file of the questions that the base writes; other data stay as they are.

    Raises UserError: a base without a chat template, a server that writes instead of the base.
    """
    if data.kind == "mix" and any(part.get("kind") == "self" for part in data.mix):
        parts = [_written_part(base, data, dict(part), config) for part in data.mix]
        return replace(data, mix=parts)
    if data.kind != "self":
        return data
    if not isinstance(base, Base):
        raise UserError("data=self is written by the base itself, not by a server. Leave regenerate.url out.")
    settings = QuestionSettings(data.questions, data.question_tokens, data.followup_share, seed=config.seed)
    file = processes.first(lambda: write_questions(base, settings, output_root(config.output)))
    return replace(data, kind="files", files=str(file))


def _written_part(
    base: Base | UnloadedBase, data: DataConfig, part: dict[str, Any], config: RegenerateConfig
) -> dict[str, Any]:
    if part.get("kind") != "self":
        return part
    names = ("questions", "question_tokens", "followup_share")
    own = {name: part.pop(name) for name in names if name in part}
    written = written_questions(base, replace(data, kind="self", mix=[], **own), config)
    return part | {"kind": "files", "files": written.files}


def prepare_text(base: Base, config: TrainConfig) -> DataConfig:
    """The data to train on: text that the base writes from the rows' openings, or the rows themselves.

    A step of training is tried first, so that what would fail after hours of writing fails now.
    """
    try_step(base, config.heads, config.objective, config.lora, config.optim, config.data)
    written = [config.data.folder] if config.data.kind == "regenerated" else []
    written += [part.get("folder", "") for part in config.data.mix if part.get("kind") == "regenerated"]
    for name in written:
        check_written(Path(name).expanduser(), base)
    if not config.data.regenerate or config.data.kind == "regenerated":
        return config.data
    folder = write_text(base, config.data, config.regenerate)
    return replace(config.data, kind="regenerated", folder=str(folder))


def writing_base(config: RegenerateScriptConfig) -> Base | UnloadedBase:
    """The base, to write text by itself; or what is known of it, where a server of it writes."""
    return load_base(config.base) if config.regenerate.url is None else describe_base(config.base)


def write_text(base: Base | UnloadedBase, data: DataConfig, config: RegenerateConfig) -> Path:
    """The folder of text that the base wrote from these rows' openings.

    Rows of both splits are continued: a row keeps its key, so what comes from held-out rows stays held out.
    """
    rows = build_source(replace(data, held_out_one_in=0), "train")
    batching = ("batch_size", "block_size", "regenerate", "held_out_one_in")
    which_rows = {name: value for name, value in settings_of(data).items() if name not in batching}
    which_rows["cursor"] = rows.state_dict()  # knows the sizes of files and the commit of a hub's data set
    return regenerate(base, rows, which_rows, config, output_root(config.output), data.on_error)


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
    base_config = config.base
    if config.scratch.enabled:
        rows = build_source(config.data, "train")
        made = processes.first(lambda: make_base(config.scratch, rows, folder / "initial", config.seed))
        base_config = replace(base_config, path=str(made))
    processes.first(lambda: check_memory(replace(config, base=base_config)))
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
    write_json(folder / TREE_FILE, content)
    engine = Engine(base, heads, calibrations=read_calibrations(folder))
    temperature = headline_temperature(content, config.evaluate.temperature)
    settings = BenchSettings(
        max_new_tokens=config.evaluate.max_new_tokens,
        temperature=temperature,
        seed=config.seed,
        repeats=config.evaluate.repeats,
    )
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
        "memory": {"estimated_bytes": trained["estimated_memory"], "peak_bytes": trained["peak_memory_bytes"]},
        "accuracy": accuracy_rows(trained),
        "calibration": content,
        "evaluation": evaluate_text(engine, prompts, config.evaluate.max_new_tokens, temperature, seed=config.seed),
        "bench": bench(engine, prompts, settings),
        "hardware": hardware(),
        "provenance": provenance(),
    }
    save_report(folder, report)
    return report


def recalibrate(config: CalibrateScriptConfig) -> tuple[Path, dict[str, Any]]:
    """Counts and times anew for a checkpoint, and writes its tree.json; the folder and the new content."""
    check_calibration(config.calibrate)
    folder = find_checkpoint(config.checkpoint, PROJECT / "checkpoints")
    description = read_description(folder)
    check_prompts(config.prompts, config.data, description)
    base = open_base(config.base, description)
    heads = load_heads(folder, base)
    if config.threads == 0:
        use_fastest_threads(base)
    if config.prompts is not None:
        limit, new_tokens = config.calibrate.num_prompts, config.calibrate.new_tokens
        prompts = load_prompts(base, config.prompts, limit, new_tokens, description)
        openings = [Opening(ids, str(number), config.prompts) for number, ids in enumerate(prompts)]
    else:
        data = choose_data(config.data, description)
        openings, _ = held_out_openings(base, data, config.calibrate.num_prompts, config.calibrate.prompt_tokens)
    content = calibrate(base, heads, openings, config.calibrate, config.coupled)
    write_json(folder / TREE_FILE, content)
    return folder, content


def headline(report: dict[str, Any], folder: Path, metric: str) -> dict[str, object]:
    """What the last line on stdout says, and `metric`, by which a sweep ranks its jobs. UserError: no such number."""
    numbers = {"checkpoint": str(folder)} | numbers_of(report)
    return numbers | {"metric": numbers[metric]}


def headline_unmeasured(trained: dict[str, Any], folder: Path) -> dict[str, object]:
    """The last line of a run whose base no process holds whole: there is nothing to decode with."""
    print(
        "The heads are trained; no process holds the whole base, so nothing was decoded with them. On a machine that "
        f"holds it: python infer/calibrate.py checkpoint={folder}, then python infer/bench.py checkpoint={folder}"
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
