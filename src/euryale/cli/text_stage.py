"""The text stage of train/run.py: prompts that are held out, questions of data=self, text that the base writes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from euryale.base.base import Base, load_base
from euryale.base.base_info import UnloadedBase, describe_base
from euryale.cli.check_run import check_rows
from euryale.cli.run_folder import settings_of
from euryale.cli.train_schemas import RegenerateScriptConfig, TrainConfig
from euryale.data.config import DataConfig
from euryale.data.row_prompts import Opening
from euryale.data.sources import build_source
from euryale.errors import UserError
from euryale.evaluation.breadth import mixed_openings
from euryale.evaluation.prompts import fit_prompts, held_out_openings
from euryale.regenerate.config import RegenerateConfig
from euryale.regenerate.manifest import check_written
from euryale.regenerate.questions import QuestionSettings, write_questions
from euryale.regenerate.regenerate import regenerate
from euryale.system import processes
from euryale.system.memory import let_go
from euryale.system.paths import output_root, user_path
from euryale.training.trial import try_step

_TOO_FEW = "Raise regenerate.num_prompts, give more rows of data"


def draw_prompts(base: Base, config: TrainConfig) -> tuple[list[Opening], list[list[int]]]:
    """Openings to calibrate on, and other prompts to measure on. Drawn before anything is trained.

    The openings are of held-out rows and, where the base has a chat template, of the breadth prompts.
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
    mixed = mixed_openings(base, to_calibrate, config.calibrate.num_prompts, config.calibrate.breadth_share)
    return mixed, prompts


def try_training(base: Base, config: TrainConfig) -> None:
    """One step of training on random tokens, so that what would fail after hours of writing fails now."""
    try_step(base, config.heads, config.objective, config.lora, config.optim, config.data)
    let_go(base.device)


def with_questions(base: Base, config: TrainConfig) -> TrainConfig:
    """The same settings, with the file of the questions that the base wrote in the place of data=self."""
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

    Raises UserError for written text that is of another base, or too little for both sides of the split.
    """
    written = [config.data.folder] if config.data.kind == "regenerated" else []
    written += [part.get("folder", "") for part in config.data.mix if part.get("kind") == "regenerated"]
    for name in written:
        check_written(user_path(name, "data.folder"), base)
    if not config.data.regenerate or config.data.kind == "regenerated":
        return config.data
    folder = write_text(base, config.data, config.regenerate)
    data = replace(config.data, kind="regenerated", folder=str(folder))
    processes.first(lambda: check_rows(data, config.optim.eval_batches > 0, _TOO_FEW))
    return data


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
