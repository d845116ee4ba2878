"""What callers give an engine to be made of, taken or refused by the name of its type."""

import os

import torch

from euryale.base.base import Base
from euryale.decoding.config import DrafterConfig
from euryale.decoding.numbers import shown, whole_number
from euryale.errors import UserError
from euryale.heads.heads import Heads


def check_parts(base: object, heads: object) -> None:
    """Raises UserError for what is no loaded base, or no loaded heads, and for a default device elsewhere."""
    if not isinstance(base, Base):
        raise UserError(
            f"base must be a loaded Base; got {shown(base)}. Load one: load_base(BaseConfig(path=...)), or heads with "
            "their base: Engine.load(FOLDER)."
        )
    check_default_device(base.device)
    if heads is not None and not isinstance(heads, Heads):
        raise UserError(f"heads must be loaded Heads; got {shown(heads)}. Engine.load(FOLDER) loads a checkpoint.")


def check_default_device(device: torch.device) -> None:
    """Raises UserError where torch makes new tensors in another place than the base's (torch.set_default_device):
    compiled code is given their addresses."""
    default = torch.get_default_device()
    if default.type not in ("cpu", device.type):
        raise UserError(
            f"torch's default device must be cpu or that of the base ({device}); got {default}. Leave "
            "torch.set_default_device out, or call the engine outside of it."
        )


def drafter_config(drafter: object) -> DrafterConfig:
    """A drafter by its name, or with settings of its own. Raises UserError for anything else."""
    if isinstance(drafter, str):
        return DrafterConfig(drafter)
    if not isinstance(drafter, DrafterConfig):
        raise UserError(f"drafter must be a name or a DrafterConfig; got {shown(drafter)}. Without drafts: 'none'.")
    return drafter


def path_of(name: str, value: object) -> str:
    """A path as text. Raises UserError for what is none."""
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(path, str):
        raise UserError(f"{name} must be a path; got {shown(value)}.")
    return path


def at_least(least: int, name: str, value: object) -> int | None:
    """A whole number, or None. Raises UserError for anything else."""
    return None if value is None else whole_number(name, value, least)
