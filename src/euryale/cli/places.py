"""Checkpoints and bases that settings name, looked for before torch is imported. What opens them looks again."""

from pathlib import Path

from euryale.base.config import BaseConfig
from euryale.cli.train_schemas import TrainConfig
from euryale.decoding.config import EngineConfig
from euryale.errors import UserError
from euryale.heads.find_checkpoint import find_checkpoint
from euryale.system.files import check_writable
from euryale.system.paths import PROJECT, output_root


def check_engine(config: EngineConfig) -> None:
    """Raises UserError for a checkpoint, base or drafting model that is not there, as what opens them would."""
    check_checkpoint(config.checkpoint)
    check_base(config.base)
    if config.drafter.name == "model":
        try:
            check_base(BaseConfig(config.drafter.path))
        except UserError as error:
            raise UserError(str(error).replace("base.path=", "drafter.path=")) from error


def check_run(config: TrainConfig) -> None:
    """Raises UserError for a base, and heads to begin with, that are not there."""
    if not config.scratch.enabled:
        check_base(config.base)
    if config.heads.init is not None and config.resume is None:
        find_checkpoint(config.heads.init, output_root(config.output), "heads.init")


def check_checkpoint(name: str | None, is_written: bool = False) -> None:
    """Raises UserError for a checkpoint that is not there, or cannot be written to where it is going to be.

    None: a base alone.
    """
    if name is not None:
        folder = find_checkpoint(name, PROJECT / "checkpoints")
        if is_written:
            check_writable(folder, f"checkpoint={name}")


def check_base(base: BaseConfig) -> None:
    """Raises UserError for a base that is not on this machine and on no hub that answers. No path: a checkpoint's."""
    if not base.path:
        return
    from euryale.base.find_model import find_model, hub_answers, is_cached  # here: --help needs no huggingface_hub

    found = find_model(base.path)
    if not Path(found).exists() and not is_cached(found, base.revision):
        hub_answers(found, base.revision)
