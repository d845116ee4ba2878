"""Which settings does each script take, of which types, and what happens when one is wrong?

Every component keeps its settings in a dataclass of its own; here they nest into one schema per script. The values
stand in conf/*.yaml. Hydra composes both, so an unknown key, a wrong type or an unknown option is refused before
anything runs, and it names what exists.
"""

import json
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from euryale.data.sources import DataConfig
from euryale.errors import UserError
from euryale.model.base import BaseConfig
from euryale.model.files import write_atomically
from euryale.model.heads import HeadsConfig
from euryale.model.locate import PROJECT
from euryale.serving.scratch import ScratchConfig
from euryale.serving.settings import CalibrateConfig, DecodeConfig, RegenerateConfig
from euryale.training.interrupt import Interrupted
from euryale.training.objective import ObjectiveConfig
from euryale.training.optim import OptimConfig
from euryale.training.resume import find_run

USER_ERROR_STATUS = 2
CONFIG_FILE = "config.yaml"  # the settings of a run, in its folder


@dataclass
class EvaluateConfig:
    """How much the run's own evaluation looks at."""

    num_prompts: int = 24
    max_new_tokens: int = 128
    temperature: float | None = None
    repeats: int = 3


@dataclass
class TrainConfig:
    """train/run.py"""

    base: BaseConfig = field(default_factory=BaseConfig)
    data: DataConfig = field(default_factory=DataConfig)
    regenerate: RegenerateConfig = field(default_factory=RegenerateConfig)
    heads: HeadsConfig = field(default_factory=HeadsConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    calibrate: CalibrateConfig = field(default_factory=CalibrateConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    scratch: ScratchConfig = field(default_factory=ScratchConfig)
    output: str = "checkpoints"
    name: str | None = None
    resume: str | None = None
    metric: str = "tau"
    seed: int = 0
    threads: int = 0
    wandb: str = "off"


@dataclass
class RegenerateScriptConfig:
    """train/regenerate.py"""

    base: BaseConfig = field(default_factory=BaseConfig)
    data: DataConfig = field(default_factory=DataConfig)
    regenerate: RegenerateConfig = field(default_factory=RegenerateConfig)
    threads: int = 0


@dataclass
class InferConfig(DecodeConfig):
    """infer/run.py"""

    prompt: str | None = None
    stop: list[str] = field(default_factory=list)


@dataclass
class BenchConfig(DecodeConfig):
    """infer/bench.py"""

    prompts: str | None = None
    limit: int = 20
    repeats: int = 3
    contenders: list[str] = field(default_factory=list)
    output: str | None = None


@dataclass
class EvalConfig(DecodeConfig):
    """infer/eval.py"""

    data: DataConfig = field(default_factory=DataConfig)
    prompts: str | None = None
    limit: int = 32
    batch_size: int = 8


@dataclass
class CalibrateScriptConfig(DecodeConfig):
    """infer/calibrate.py"""

    data: DataConfig = field(default_factory=DataConfig)
    calibrate: CalibrateConfig = field(default_factory=CalibrateConfig)
    prompts: str | None = None


@dataclass
class ExportConfig:
    """infer/export.py"""

    checkpoint: str = "last"
    base: BaseConfig = field(default_factory=BaseConfig)
    format: str = "euryale"
    output: str | None = None


SCHEMAS: dict[str, type] = {
    "train": TrainConfig,
    "regenerate": RegenerateScriptConfig,
    "infer": InferConfig,
    "bench": BenchConfig,
    "eval": EvalConfig,
    "calibrate": CalibrateScriptConfig,
    "export": ExportConfig,
}


def script(name: str) -> Callable[[Callable[[Any], dict[str, object]]], Callable[[], None]]:
    """Makes a script's main: composes conf/NAME.yaml with the command line and calls it with the schema's dataclass.

    The dictionary that main returns becomes the last line on stdout, as JSON, and its `metric` entry is what a
    sweeper sees. A UserError, or a setting that Hydra refuses, ends with its message and status 2.
    """

    def decorate(main: Callable[[Any], dict[str, object]]) -> Callable[[], None]:
        ConfigStore.instance().store(name=f"{name}_schema", node=SCHEMAS[name])
        has_started = False

        def task(composed: DictConfig) -> object:
            nonlocal has_started
            has_started = True
            logging.captureWarnings(True)
            try:
                result = main(OmegaConf.to_object(composed))
            except UserError as error:
                sys.exit(_refuse(str(error)))
            except Interrupted as interruption:
                print(interruption, file=sys.stderr)
                sys.exit(interruption.exit_status)
            print(json.dumps(result), flush=True)
            return result.get("metric")

        def run() -> None:
            wrapped = hydra.main(version_base="1.3", config_path=str(PROJECT / "conf"), config_name=name)(task)
            try:
                wrapped()
            except SystemExit as ending:
                # Hydra has printed what is wrong with the command line and ends with 1; for us that is a user's error.
                if ending.code == 1 and not has_started:
                    sys.exit(USER_ERROR_STATUS)
                raise

        return run

    return decorate


def settle_run(config: TrainConfig) -> tuple[TrainConfig, Path]:
    """The settings of this run and its folder: a new folder, or with `resume` an old one and the settings it has.

    Raises UserError: nothing to go on with, other settings beside resume=, a folder that holds a run already.
    """
    if config.resume is not None:
        extra = [o for o in HydraConfig.get().overrides.task if not o.startswith("resume=")]
        if extra:
            raise UserError(
                f"resume={config.resume} goes on with the settings of that run. Leave out: {' '.join(extra)}."
            )
        folder = find_run(config.resume, output_root(config.output))
        saved = OmegaConf.load(folder / CONFIG_FILE)
        settled = OmegaConf.to_object(
            OmegaConf.merge(OmegaConf.structured(TrainConfig), saved, {"resume": str(folder)})
        )
        assert isinstance(settled, TrainConfig)
        return settled, folder
    folder = _new_folder(config)
    if (folder / CONFIG_FILE).exists():
        raise UserError(f"{folder} holds a run already. Go on with resume={folder}, or give another name=.")
    with write_atomically(folder / CONFIG_FILE) as staged:
        staged.write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))
    return config, folder


def _new_folder(config: TrainConfig) -> Path:
    """Below `output` by name or by time; in a sweep, the folder of this job."""
    hydra_config = HydraConfig.get()
    if hydra_config.mode == RunMode.MULTIRUN:
        return Path(hydra_config.runtime.output_dir)
    return output_root(config.output) / (config.name or datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))


def output_root(output: str) -> Path:
    """`output`, below the project unless it is an absolute path: `last` finds runs from any working folder."""
    return PROJECT / output


def settings_of(config: object) -> dict[str, Any]:
    """A config dataclass as plain data, for checkpoints and manifests."""
    plain = OmegaConf.to_container(OmegaConf.structured(config))
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def use_threads(threads: int) -> None:
    """Sets the number of CPU threads; 0 keeps torch's choice (one a core). Raises UserError below 0."""
    import torch  # here: composing a config must not wait for torch

    if threads < 0:
        raise UserError(f"threads={threads} cannot be. Give a number of CPU threads, or 0 for one a core.")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if threads:
        torch.set_num_threads(threads)


def _refuse(message: str) -> int:
    print(f"error: {message}", file=sys.stderr, flush=True)
    return USER_ERROR_STATUS
