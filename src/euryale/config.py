"""How does a command line become the settings of a run, and what happens when something is wrong with it?

Hydra composes the schema (schemas.py), the values in conf/*.yaml and the command line, so an unknown key, a wrong
type or an unknown option is refused before anything runs, and what exists is named.
"""

import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]  # comes with omegaconf

from euryale import processes, sweeping
from euryale.commandline import check_keys, is_setting, quote_text
from euryale.determinism import be_deterministic, refusal
from euryale.errors import UserError
from euryale.model.files import check_writable, write_atomically
from euryale.model.locate import PROJECT, output_root
from euryale.schemas import SCHEMAS, TrainConfig
from euryale.training.interrupt import Interrupted
from euryale.training.resume import CONFIG_FILE, find_run

USER_ERROR_STATUS = 2
CONF = PROJECT / "conf"
log = logging.getLogger(__name__)
FREE_TEXT = {"prompt"}  # settings whose value is taken letter by letter
_BEFORE_SETTINGS = {"initial", "wandb"}  # what a run makes before its settings are saved


def script(name: str) -> Callable[[Callable[[Any], dict[str, object]]], Callable[[], None]]:
    """Makes a script's main: composes conf/NAME.yaml with the command line and calls it with the schema's dataclass.

    The dictionary that main returns becomes the last line on stdout, as JSON, and its `metric` entry is what a
    sweeper sees. A UserError, or a setting that Hydra refuses, ends with its message and status 2.
    """

    def decorate(main: Callable[[Any], dict[str, object]]) -> Callable[[], None]:
        ConfigStore.instance().store(name=f"{name}_schema", node=SCHEMAS[name])
        is_composed = False

        def task(composed: DictConfig) -> object:
            nonlocal is_composed
            is_composed = True
            logging.captureWarnings(True)
            if not processes.is_first():
                logging.getLogger().setLevel(logging.ERROR)  # the first one says it
            try:
                result = _told(main, _to_dataclass(composed))
            except UserError as error:
                if HydraConfig.get().mode == RunMode.MULTIRUN:
                    sweeping.give_up_job(str(error))
                    return None
                sys.exit(_refuse(str(error)))
            except Interrupted as interruption:
                _say(str(interruption))
                sys.exit(interruption.exit_status)
            except KeyboardInterrupt:
                _say("interrupted; what was saved before is kept")
                sys.exit(sweeping.CTRL_C_STATUS)
            except Exception as error:  # a bug, which must not cost the other jobs of a sweep
                if HydraConfig.get().mode == RunMode.MULTIRUN:
                    log.exception("this job of the sweep failed")
                    sweeping.give_up_job(f"{type(error).__name__}: {error}")
                    return None
                raise
            if processes.is_first():
                print(json.dumps(result), flush=True)
            is_composed = False  # a sweep composes the next job
            return result.get("metric")

        def run() -> None:
            try:
                check_keys(sys.argv[1:], SCHEMAS[name], _groups())
                sys.argv[1:] = sweeping.settle_arguments(sys.argv[1:])
                sys.argv[1:] = quote_text(sys.argv[1:], FREE_TEXT)
                _check_grammar(sys.argv[1:])
            except UserError as error:
                sys.exit(_refuse(str(error)))
            try:
                with sweeping.launching():
                    hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)(task)()
            except SystemExit as ending:
                # Hydra has printed what is wrong with the command line and ends with 1; for us that is a user's error.
                if ending.code == 1 and not is_composed:
                    sys.exit(USER_ERROR_STATUS)
                raise

        return run

    return decorate


def _told(main: Callable[[Any], dict[str, object]], settings: object) -> dict[str, object]:
    """What main returns. UserError for what a GPU cannot do deterministically."""
    try:
        return main(settings)
    except RuntimeError as error:
        if (message := refusal(error)) is None:
            raise
        raise UserError(message) from error


def _groups() -> dict[str, list[str]]:
    """The folders of conf/ and the options in each."""
    return {folder.name: sorted(p.stem for p in folder.glob("*.yaml")) for folder in CONF.iterdir() if folder.is_dir()}


def _check_grammar(arguments: list[str]) -> None:
    """Hydra says what it stumbles on, but not in which argument."""
    parser = OverridesParser.create()
    for argument in filter(is_setting, arguments):
        try:
            parser.parse_override(argument)
        except HydraException as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{argument} cannot be read ({reason}). Put a value with special characters into two kinds of quotes: "
                """key='"value"'."""
            ) from error


def _to_dataclass(composed: DictConfig) -> object:
    """The schema's own classes. UserError for what only shows when values are read, as an interpolation does."""
    try:
        return OmegaConf.to_object(composed)
    except OmegaConfBaseException as error:
        raise UserError(f"the settings cannot be read: {error}") from error


def device_of(config: TrainConfig) -> str:
    """base.device of this run, or of the one that it goes on with."""
    return (settle_run(config)[0] if config.resume is not None else config).base.device


def settle_run(config: TrainConfig) -> tuple[TrainConfig, Path]:
    """The settings of this run and its folder: one that is not there yet, or with `resume` an old one and what it has.

    Nothing is written: a command that is refused later leaves nothing behind. Raises UserError: nothing to go on
    with, other settings beside resume=, a folder that is in use.
    """
    if config.resume is not None:
        # output= only says where to look
        extra = [o for o in HydraConfig.get().overrides.task if not o.startswith(("resume=", "output="))]
        if extra:
            raise UserError(
                f"resume={config.resume} goes on with the settings of that run. Leave out: {' '.join(extra)}."
            )
        folder = find_run(config.resume, output_root(config.output))
        return _read_settings(folder), folder
    if config.name and (Path(config.name).is_absolute() or ".." in Path(config.name).parts):
        raise UserError(
            f"name={config.name} lies outside of output={config.output}. Give a name below it, and output=DIR for "
            "another place."
        )
    folder = _new_folder(config)
    check_writable(folder, f"output={config.output} name={config.name}" if config.name else f"output={config.output}")
    if folder.exists() and not _was_killed_at_once(folder):
        go_on = f"Go on with resume={folder}, or give" if (folder / CONFIG_FILE).is_file() else "It is no run: give"
        raise UserError(f"{folder} is there already. {go_on} another name=.")
    return config, folder


def _was_killed_at_once(folder: Path) -> bool:
    """Whether there is nothing in a folder but what a run leaves that is killed before it has saved its settings."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else {CONFIG_FILE}
    return all(name in _BEFORE_SETTINGS or name.endswith(".tmp") for name in names)


@contextmanager
def whole_or_nothing(folder: Path) -> Iterator[None]:
    """Removes a new run folder again when the run ends, refused or interrupted, before its settings were saved."""
    try:
        yield
    except BaseException:
        if processes.is_first() and not (folder / CONFIG_FILE).exists():
            shutil.rmtree(folder, ignore_errors=True)
        raise


def save_settings(config: TrainConfig, folder: Path) -> None:
    """Writes what `resume` will read: from here on there is a run."""
    if config.resume is None:
        with write_atomically(folder / CONFIG_FILE) as staged:
            staged.write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))


def _read_settings(folder: Path) -> TrainConfig:
    try:
        saved = OmegaConf.load(folder / CONFIG_FILE)
        merged = OmegaConf.merge(OmegaConf.structured(TrainConfig), saved, {"resume": str(folder)})
        settled = OmegaConf.to_object(merged)
    except (OSError, ValueError, TypeError, YAMLError, OmegaConfBaseException) as error:
        raise UserError(
            f"resume={folder}: its {CONFIG_FILE} cannot be read ({error}). Restore the file, or start anew."
        ) from error
    assert isinstance(settled, TrainConfig)
    return settled


def _new_folder(config: TrainConfig) -> Path:
    """Below `output` by name or by time; in a sweep, the folder of this job."""
    hydra_config = HydraConfig.get()
    if hydra_config.mode == RunMode.MULTIRUN:
        return Path(hydra_config.runtime.output_dir)
    return output_root(config.output) / (config.name or datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))


def settings_of(config: object) -> dict[str, Any]:
    """A config dataclass as plain data, for checkpoints and manifests."""
    plain = OmegaConf.to_container(OmegaConf.structured(config))
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def use_threads(threads: int, deterministic: bool = False, seed: int = 0) -> None:
    """Sets the number of CPU threads; 0 keeps torch's choice (one a core; one at all when it has to be deterministic).

    Raises UserError below 0.
    """
    import torch  # here: composing a config must not wait for torch

    if threads < 0:
        raise UserError(f"threads={threads} cannot be. Give a number of CPU threads, or 0 for one a core.")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if threads:
        torch.set_num_threads(threads)
    if deterministic:
        be_deterministic(seed, threads)


def _refuse(message: str) -> int:
    processes.hold_back()
    who = "" if processes.is_first() else f" (process {processes.number()} of {processes.count()})"
    print(f"error{who}: {message}", file=sys.stderr, flush=True)
    return USER_ERROR_STATUS


def _say(message: str) -> None:
    if processes.is_first():
        print(message, file=sys.stderr, flush=True)
