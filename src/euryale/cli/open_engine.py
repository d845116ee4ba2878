"""From the settings of an infer script to an engine: what cannot work is refused before the base is loaded."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from euryale.base.base import Base, load_base
from euryale.base.config import BaseConfig
from euryale.base.lora import check_adapter
from euryale.base.precision import quantization_of_heads
from euryale.decoding.config import EngineConfig
from euryale.decoding.drafters.build import check_heads
from euryale.decoding.engine import Engine
from euryale.decoding.tree.calibration import find_tree, read_calibrations, tree_name
from euryale.decoding.tree.choose import plan_tree
from euryale.errors import UserError
from euryale.evaluation.threads import use_calibrated_threads
from euryale.heads.checkpoint import dtype_for, heads_config, read_description
from euryale.heads.find_checkpoint import find_checkpoint
from euryale.heads.heads import Heads
from euryale.system.paths import PROJECT, argument

log = logging.getLogger(__name__)


def open_engine(config: EngineConfig) -> Engine:
    """Finds the checkpoint, loads its base and heads. Raises UserError for anything that does not fit."""
    folder, description = open_checkpoint(config)
    base = open_base(config.base, description)
    if folder is None:
        return Engine(base, None, config.drafter, config.tree, accept=config.accept)
    if config.threads == 0:
        use_calibrated_threads(base, folder)
    return Engine.load(folder, base, drafter=config.drafter, tree=config.tree, accept=config.accept)


def open_checkpoint(config: EngineConfig) -> tuple[Path | None, dict[str, Any]]:
    """The checkpoint's folder and what its heads.json says; (None, {}) for a base alone.

    Raises UserError: a setting out of range, no such checkpoint, a drafter or tree that does not fit its heads, a
    drafter that needs a checkpoint, no base named instead.
    """
    config.check()
    if config.checkpoint is not None:
        folder = find_checkpoint(config.checkpoint, PROJECT / "checkpoints")
        description = read_description(folder)
        check_tree(config, folder, description)
        return folder, description
    if config.drafter.needs_heads:
        raise UserError(
            f"checkpoint=null leaves drafter={config.drafter.name} without heads. Name a checkpoint, or use "
            "drafter=lookup, drafter=lookahead or drafter=none."
        )
    if config.base.path is None:
        raise UserError("checkpoint=null names no base. Give one, for example base=tiny or base.path=FOLDER_OR_HUB_ID.")
    return None, {}


def check_tree(config: EngineConfig, folder: Path, description: dict[str, Any]) -> None:
    """Raises UserError for a drafter or tree that these heads and their tree.json cannot give; the weights are not
    read."""
    with torch.device("meta"):
        heads = Heads(heads_config(folder, description), description["hidden_size"], description["vocab_size"])
    check_heads(config.drafter, heads)
    if not config.drafter.needs_heads:
        return
    quantization = quantization_of_heads(config.base.quantization, description.get("base"))
    file = find_tree(folder, quantization)
    wants_file = config.tree.name == "calibrated" or (config.tree.name == "dynamic" and file.is_file())
    calibrations = read_calibrations(folder, quantization) if wants_file else []
    if wants_file and file.name != tree_name(quantization):
        fitted, here = ("16 bits", "4 bits") if quantization == "int4" else ("4 bits", "these")
        log.info(
            "the tree was fitted to weights in %s; fit one to %s with: python infer/calibrate.py %s "
            "base.quantization=%s", fitted, here, argument("checkpoint", folder), quantization,
        )  # fmt: skip
    plan_tree(config.tree, heads, config.drafter.depth, calibrations, config.temperature)


def open_base(config: BaseConfig, description: dict) -> Base:
    """The base that a checkpoint's description names, or the one that the settings name instead.

    base.dtype=auto is the dtype that the heads were trained and calibrated on, where this processor is quick in it.
    """
    if not description:
        return load_base(config)
    trained_on = description.get("base")
    if not isinstance(trained_on, dict) or "path" not in trained_on:
        raise UserError("the checkpoint's heads.json does not say which base it belongs to. Use another checkpoint.")
    config = replace(config, quantization=quantization_of_heads(config.quantization, trained_on))
    check_adapter(description, config.quantization, config.merge_adapter)
    config = replace(config, dtype=dtype_for(config.dtype, description, config.device))
    if config.path is None:
        _check_is_there(trained_on["path"])
        config = replace(config, path=trained_on["path"], revision=config.revision or trained_on.get("revision"))
    return load_base(config)


def _check_is_there(path: object) -> None:
    """Raises UserError for a folder that heads were trained for and that was moved since."""
    if isinstance(path, str) and Path(path).is_absolute() and not Path(path).exists():
        raise UserError(
            f"the base of these heads, {path}, is not there any more. Give the place where it is now: base.path=FOLDER."
        )
