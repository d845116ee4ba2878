"""Usable results of a run: heads that decode, or at the end a trained base.

They are written after the resume state. A kill between the two leaves what an older save published; resuming the run
corrects that.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch

from euryale.base.base import Base
from euryale.heads.checkpoint import read_description, save_heads
from euryale.heads.find_checkpoint import DESCRIPTION
from euryale.heads.heads import Heads
from euryale.system.files import json_text, read_json, write_atomically
from euryale.system.provenance import provenance
from euryale.training.config import ObjectiveConfig

BASE = "base"


def publish(
    folder: Path,
    base: Base,
    heads: Heads | None,
    objective: ObjectiveConfig,
    facts: Mapping[str, object],
    is_last: bool,
) -> None:
    """Writes the heads into `folder`, or after the last step the base into `folder`/base. `facts` are step, tokens and
    settings of the run."""
    if heads is not None:
        save_heads(folder, heads, base, provenance() | dict(facts), objective=asdict(objective))
    elif is_last:
        save_base(folder / BASE, base)


def is_published(folder: Path, heads: Heads | None, step: int, is_last: bool) -> bool:
    """Whether the usable files in `folder` are those of this step."""
    if heads is None:
        return not is_last or (folder / BASE / "model.safetensors").is_file()
    if not (folder / DESCRIPTION).is_file():
        return False
    return read_description(folder).get("provenance", {}).get("step") == step


def save_base(folder: Path, base: Base) -> None:
    """Writes a base that was trained here as a Hugging Face folder in bfloat16, all or nothing."""
    weights = {name: tensor.detach().to("cpu", torch.bfloat16) for name, tensor in base.model.state_dict().items()}
    with write_atomically(folder, last="model.safetensors") as staged:
        base.model.save_pretrained(staged, state_dict=weights)
        base.tokenizer.save_pretrained(staged)
        config = read_json(staged / "config.json")
        (staged / "config.json").write_text(json_text(config | {"dtype": "bfloat16"}))
