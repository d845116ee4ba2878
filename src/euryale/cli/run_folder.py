"""Folders of runs: made whole or not at all, resumed with the settings that they were started with."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]  # comes with omegaconf

from euryale.cli.train_schemas import TrainConfig
from euryale.errors import UserError
from euryale.system import processes
from euryale.system.files import check_writable, remove, write_atomically
from euryale.system.locks import alone
from euryale.system.paths import argument, output_root
from euryale.training.saves import CONFIG_FILE, find_run

_BEFORE_SETTINGS = {"initial", "wandb"}  # what a run makes before its settings are saved
_ALWAYS_THERE = ("base", "data", "heads", "objective", "optim")  # in the settings of a run
_LOCK = ".running.tmp"  # held while the run goes on


def device_of(config: TrainConfig) -> str:
    """base.device of this run, or of the one that it goes on with."""
    return (settle_run(config)[0] if config.resume is not None else config).base.device


def settle_run(config: TrainConfig) -> tuple[TrainConfig, Path]:
    """The settings of this run and its folder: one that is not there yet, or with `resume` an old one and what it has.

    Nothing is written: a command that is refused later leaves nothing. Raises UserError: nothing to go on
    with, other settings together with resume=, a folder that is in use.
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
            f"name must lie below output={config.output}; got {config.name}. For another place give output=DIR."
        )
    folder = _new_folder(config)
    check_writable(folder, f"output={config.output} name={config.name}" if config.name else f"output={config.output}")
    if folder.exists() and not _was_killed_at_once(folder):
        go_on = (
            f"Go on with {argument('resume', folder)}, or give"
            if (folder / CONFIG_FILE).is_file()
            else "It is not a run: give"
        )
        raise UserError(f"{folder} is there already. {go_on} another name=.")
    return config, folder


def _was_killed_at_once(folder: Path) -> bool:
    """Whether a folder holds only what a run leaves that is killed before it has saved its settings."""
    return folder.is_dir() and all(_precedes_settings(path) for path in folder.iterdir())


def _precedes_settings(path: Path) -> bool:
    return path.name in _BEFORE_SETTINGS or path.name.endswith(".tmp")


@contextmanager
def whole_or_nothing(folder: Path) -> Iterator[None]:
    """Removes what a run has put into its folder when the run ends, refused or interrupted, before its settings were
    saved; and the folders that the run made. What was there before stays. Raises UserError while another process
    writes the same run."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    before = set() if made else set(folder.iterdir())
    try:
        with ExitStack() as held:
            processes.first(lambda: held.enter_context(_alone(folder)))
            yield
    except BaseException:
        if processes.is_first() and folder.is_dir() and not (folder / CONFIG_FILE).exists():
            for path in set(filter(_precedes_settings, folder.iterdir())) - before:
                remove(path)
            with suppress(OSError):  # something that no run has made is in it
                for path in made:
                    path.rmdir()
        raise


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Raises UserError while another process holds the folder: two runs of one name would write over each other."""
    folder.mkdir(parents=True, exist_ok=True)

    def refuse() -> NoReturn:
        raise UserError(f"another process is writing the run {folder}. Wait for it, or give another name=.")

    with alone(folder / _LOCK, refuse):
        yield


def save_settings(config: TrainConfig, folder: Path) -> None:
    """Writes what `resume` will read: from here on there is a run."""
    if config.resume is None:
        with write_atomically(folder / CONFIG_FILE) as staged:
            staged.write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))


def _read_settings(folder: Path) -> TrainConfig:
    try:
        saved = OmegaConf.load(folder / CONFIG_FILE)
        missing = [name for name in _ALWAYS_THERE if not isinstance(saved, DictConfig) or name not in saved]
        if missing:  # the defaults would be taken for them, which is another run
            raise ValueError(f"it holds no {', '.join(missing)}")
        merged = OmegaConf.merge(OmegaConf.structured(TrainConfig), saved, {"resume": str(folder)})
        settled = OmegaConf.to_object(merged)
    except (OSError, ValueError, TypeError, YAMLError, OmegaConfBaseException) as error:
        raise UserError(
            f"resume={folder}: its {CONFIG_FILE} cannot be read ({' '.join(str(error).split())}). Restore the file, or "
            "start anew."
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
