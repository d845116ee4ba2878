"""How does an infer script get from its settings to an engine?"""

from dataclasses import replace

from euryale.decoding.engine import Engine
from euryale.errors import UserError
from euryale.model.base import Base, BaseConfig, load_base
from euryale.model.checkpoint import find_checkpoint, read_description
from euryale.model.locate import PROJECT
from euryale.serving.settings import DecodeConfig
from euryale.serving.threads import use_calibrated_threads

ACCEPT_RULES = ("exact",)


def open_engine(config: DecodeConfig) -> Engine:
    """Finds the checkpoint, loads its base and heads. Raises UserError for anything that does not fit."""
    if config.accept.name not in ACCEPT_RULES:
        raise UserError(f"accept={config.accept.name} is not known. Choose one of: {', '.join(ACCEPT_RULES)}.")
    if config.max_new_tokens < 1:
        raise UserError(f"max_new_tokens={config.max_new_tokens} cannot be. Give a number of at least 1.")
    folder = find_checkpoint(config.checkpoint, PROJECT / "checkpoints")
    base = open_base(config.base, read_description(folder))
    if config.threads == 0:
        use_calibrated_threads(base, folder)
    engine = Engine.load(folder, base, drafter=config.drafter.name, tree=config.tree.name)
    return engine if config.tree.num_nodes is None else engine.with_num_nodes(config.tree.num_nodes)


def open_base(config: BaseConfig, description: dict) -> Base:
    """The base that a checkpoint's description names, or the one that the settings name instead."""
    trained_on = description.get("base")
    if not isinstance(trained_on, dict) or "path" not in trained_on:
        raise UserError("the checkpoint's heads.json does not say which base it belongs to. Use another checkpoint.")
    if config.quantization == "auto":
        config = replace(config, quantization=trained_on.get("quantization", "none"))
    if config.path is None:
        config = replace(config, path=trained_on["path"], revision=config.revision or trained_on.get("revision"))
    return load_base(config)
