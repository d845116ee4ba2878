"""How does an infer script get from its settings to an engine?"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from euryale.base.base import Base, load_base
from euryale.base.config import BaseConfig
from euryale.decoding.config import DecodeConfig
from euryale.decoding.engine import Engine
from euryale.errors import UserError
from euryale.evaluation.threads import use_calibrated_threads
from euryale.heads.checkpoint import find_checkpoint, read_description
from euryale.system.paths import PROJECT


def open_engine(config: DecodeConfig) -> Engine:
    """Finds the checkpoint, loads its base and heads. Raises UserError for anything that does not fit."""
    folder, description = open_checkpoint(config)
    base = open_base(config.base, description)
    if folder is None:
        return Engine(base, None, config.drafter, config.tree, accept=config.accept)
    if config.threads == 0:
        use_calibrated_threads(base, folder)
    return Engine.load(folder, base, drafter=config.drafter, tree=config.tree, accept=config.accept)


def open_checkpoint(config: DecodeConfig) -> tuple[Path | None, dict[str, Any]]:
    """The checkpoint's folder and what its heads.json says; (None, {}) for a base alone.

    Raises UserError: a setting that cannot be, no such checkpoint, a drafter that needs one, no base named instead.
    """
    config.check()
    if config.checkpoint is not None:
        folder = find_checkpoint(config.checkpoint, PROJECT / "checkpoints")
        return folder, read_description(folder)
    if config.drafter.needs_heads:
        raise UserError(
            f"checkpoint=null leaves drafter={config.drafter.name} without heads. Name a checkpoint, or use "
            "drafter=lookup, drafter=lookahead or drafter=none."
        )
    if config.base.path is None:
        raise UserError("checkpoint=null names no base. Give one, for example base=tiny or base.path=FOLDER_OR_HUB_ID.")
    return None, {}


def open_base(config: BaseConfig, description: dict) -> Base:
    """The base that a checkpoint's description names, or the one that the settings name instead."""
    if not description:
        return load_base(config)
    trained_on = description.get("base")
    if not isinstance(trained_on, dict) or "path" not in trained_on:
        raise UserError("the checkpoint's heads.json does not say which base it belongs to. Use another checkpoint.")
    if config.quantization == "auto":
        config = replace(config, quantization=trained_on.get("quantization", "none"))
    if config.path is None:
        config = replace(config, path=trained_on["path"], revision=config.revision or trained_on.get("revision"))
    return load_base(config)
