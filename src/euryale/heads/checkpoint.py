"""Heads checkpoints: what is in one, how it is found, and when it is refused.

A checkpoint is a folder. `heads.json` says what it is: format version, the base it was trained for, design and
sizes of the heads, where they came from. `heads.safetensors` holds the numbers; `adapter/` (base/lora.py) the adapter
that was trained alongside, where there is one. Nothing in it is ever executed: no pickle, no class path. What does not
fit this base, this version or its own description is refused.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from euryale.base.base import Base
from euryale.base.identity import check_same_base
from euryale.base.lora import FOLDER, load_adapter, save_adapter
from euryale.base.precision import DTYPES, dtype_of_heads, pick_device
from euryale.errors import UserError
from euryale.heads.config import HeadsConfig
from euryale.heads.draft_rows import IDS, add_rows, drop_rows, stored_shapes
from euryale.heads.find_checkpoint import DESCRIPTION
from euryale.heads.heads import Heads
from euryale.system.files import json_text, read_json, write_atomically
from euryale.system.tensor_files import check_finite, read_tensors

FORMAT_VERSION = 1
_MOST_SIZE = 2**24  # of a vocabulary or a hidden state
DRAFT_ROWS = "draft"  # corrections hold the rows of the draft vocabulary; a description without it: all rows
WEIGHTS = "heads.safetensors"
# What older heads are, whose description does not say.
_LATER_KEYS: dict[str, Any] = {"features": "last", "output_rank": 64, "residual": True, "induction": 0}
LABEL_OFFSET = 2  # head k at position t is scored on ids[t + 2 + k]
Objects = Mapping[str, object]


def save_heads(
    folder: Path,
    heads: Heads,
    base: Base,
    provenance: Objects,
    objective: Objects | None = None,
) -> None:
    """Writes heads.json and heads.safetensors into a new or existing folder, and adapter/ when the base has one.

    Weights are stored in the base's dtype, in which they will be used. All or nothing: see write_atomically.
    """
    tensors = {
        name: tensor.detach().to("cpu", base.dtype if tensor.is_floating_point() else None).contiguous()
        for name, tensor in drop_rows(heads.state_dict()).items()
    }
    description = {
        "format_version": FORMAT_VERSION,
        "base": base.identity(),
        "heads": heads.config.design(),
        "num_heads": heads.num_heads,
        "hidden_size": heads.hidden_size,
        "vocab_size": heads.vocab_size,
        "num_parameters": heads.num_parameters(),
        "dtype": str(base.dtype).removeprefix("torch."),
        "rows": DRAFT_ROWS,
        "label_offset": LABEL_OFFSET,
        "adapter": FOLDER if base.adapter is not None else None,
        "objective": dict(objective or {}),
        "provenance": dict(provenance),
    }
    if base.adapter is not None:
        save_adapter(folder, base)
    with write_atomically(folder, last=DESCRIPTION) as staged:
        staged.mkdir()
        save_file(tensors, staged / WEIGHTS)
        (staged / DESCRIPTION).write_text(json_text(description))


def dtype_for(asked: str, description: Mapping[str, Any], device: str) -> str:
    """base.dtype for these heads: `auto` is the dtype that they were trained and calibrated on, where heads.json says
    it and the device is quick in it."""
    stored = str(description.get("dtype"))
    return dtype_of_heads(stored, pick_device(device)) if asked == "auto" and stored in DTYPES else asked


def load_heads(folder: Path, base: Base) -> Heads:
    """The heads in `folder`, in eval mode, on the device and in the dtype of `base`.

    If they were trained with an adapter, `base` gets it here: from then on it is the base that these heads know.
    Raises UserError for another base (both are named), another format, a damaged file, missing or misshapen tensors.
    """
    description = read_description(folder)
    _check_base(folder, description, base.identity())
    _settle_adapter(folder, description, base)
    return _read_heads(folder, description, base, base.dtype).eval().requires_grad_(False)


def check_initial(folder: Path, config: HeadsConfig, identity: Objects) -> None:
    """Raises UserError for heads that training with `config` on the base of this `identity` cannot go on from.

    Reads heads.json alone.
    """
    description = read_description(folder)
    _check_base(folder, description, identity)
    if description.get("adapter") is not None:
        raise UserError(
            f"heads.init={folder} must be heads of a base alone; these were trained with an adapter, which belongs to "
            "their last training. Give heads of objective=medusa1, or leave heads.init out."
        )
    trained, asked = heads_config(folder, description).design(), config.design()
    different = [f"heads.{key}={trained[key]} there, {asked[key]} here" for key in asked if trained[key] != asked[key]]
    if different:
        raise UserError(
            f"heads.init={folder} must have the design of this run; got {', '.join(different)}. Set these as there, or "
            "leave heads.init out."
        )


def load_initial(folder: Path, base: Base) -> Heads:
    """Heads to be trained further, in float32; `check_initial` has found them right."""
    return _read_heads(folder, read_description(folder), base, torch.float32)


def _read_heads(folder: Path, description: Mapping[str, Any], base: Base, dtype: torch.dtype) -> Heads:
    config = heads_config(folder, description)
    expected = {
        "hidden_size": base.hidden_size, "vocab_size": base.vocab_size, "num_heads": config.num_heads,
        "label_offset": LABEL_OFFSET,
    }  # fmt: skip
    for key, value in expected.items():
        if description.get(key) != value:
            raise UserError(
                f"{folder / DESCRIPTION}: {key} is {description.get(key)!r}, and these heads have {value}. Restore the "
                "file, or use another checkpoint."
            )
    with torch.device("meta"):  # shapes first, memory after they were found right
        heads = Heads(config, base.hidden_size, base.vocab_size)
    tensors = read_weights(folder, description, heads)
    # A copy, because tensors from the file are views into it at whatever address the file dictates.
    placed = {
        name: tensor.to(base.device, dtype if tensor.is_floating_point() else None, copy=True)
        for name, tensor in tensors.items()
    }
    heads.load_state_dict(placed, assign=True)
    return heads


def read_weights(folder: Path, description: Mapping[str, Any], heads: Heads) -> dict[str, Tensor]:
    """The tensors of heads.safetensors on the CPU, as the state of `heads` (which may be on the meta device).

    Raises UserError: tensors that are missing, misshapen or not finite, a draft vocabulary that cannot be one.
    """
    file = folder / WEIGHTS
    shapes = {name: tuple(tensor.shape) for name, tensor in heads.state_dict().items()}
    drafts_alone = description.get("rows") == DRAFT_ROWS
    tensors = read_tensors(file, stored_shapes(shapes) if drafts_alone else shapes)
    check_finite(file, tensors)
    if IDS in tensors:
        ids = tensors[IDS].tolist()
        # A token named twice would be drafted twice below one parent, and both would be accepted.
        if ids != sorted(set(ids)) or not 0 <= ids[0] <= ids[-1] < heads.vocab_size:
            raise UserError(f"{file}: draft_ids are not increasing ids of the vocabulary. Use another checkpoint.")
    return add_rows(tensors, heads.vocab_size) if drafts_alone else tensors


def read_description(folder: Path) -> dict:
    """heads.json of a checkpoint. Raises UserError when there is none, one of another format version, or with sizes
    that no heads have."""
    if not (folder / DESCRIPTION).is_file():
        raise UserError(f"{folder} is not a checkpoint: it has no {DESCRIPTION}. Train one with train/run.py.")
    description = read_json(folder / DESCRIPTION)
    version = description.get("format_version")
    if version != FORMAT_VERSION:
        raise UserError(
            f"{folder / DESCRIPTION} has format_version {version!r}; this euryale reads {FORMAT_VERSION}. "
            "Use the euryale that wrote it, or train again."
        )
    for key in ("hidden_size", "vocab_size"):
        size = description.get(key)
        if type(size) is not int or not 1 <= size <= _MOST_SIZE:
            raise UserError(
                f"{folder / DESCRIPTION}: {key} must be a whole number from 1 to {_MOST_SIZE}; got {size!r:.40}. "
                "Restore the file, or use another checkpoint."
            )
    return description


def _check_base(folder: Path, description: Mapping, identity: Objects) -> None:
    trained = description.get("base")
    if not isinstance(trained, dict):
        raise UserError(f"{folder / DESCRIPTION} does not say which base it belongs to. Use another checkpoint.")
    check_same_base(f"The heads in {folder}", trained, identity)


def _settle_adapter(folder: Path, description: Mapping, base: Base) -> None:
    """Puts the adapter that the heads were trained with on the base, unless it is there already."""
    named = description.get("adapter")
    present = base.adapter_of
    if named is None and present is not None:
        raise UserError(
            f"The heads in {folder} were trained for the base alone, and this base carries the adapter of {present}. "
            "Load the base anew."
        )
    if named is not None and present is None:
        load_adapter(folder, base)
        base.adapter_of = str(folder.resolve())
    elif named is not None and present != str(folder.resolve()):
        raise UserError(
            f"The heads in {folder} were trained with an adapter of their own, and this base carries that of "
            f"{present}. Load the base anew."
        )


def heads_config(folder: Path, description: Mapping) -> HeadsConfig:
    """The design in heads.json. Raises UserError for an unknown key, or a value of another type than its default."""
    design = description.get("heads")
    if not isinstance(design, dict):
        raise UserError(f"{folder / DESCRIPTION} does not describe its heads. Use another checkpoint.")
    defaults = HeadsConfig().design()
    design = {**_LATER_KEYS, **design}
    wrong = sorted(set(design) ^ set(defaults))
    wrong += [key for key in set(design) & set(defaults) if type(design[key]) is not type(defaults[key])]
    if wrong:
        raise UserError(f"{folder / DESCRIPTION}: heads has missing, unknown or mistyped keys: {', '.join(wrong)}.")
    config = HeadsConfig(**design)
    try:
        config.check()
    except UserError as error:
        raise UserError(f"{folder / DESCRIPTION}: {error}") from error
    return config
