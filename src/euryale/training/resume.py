"""State of an interrupted run: what is kept so that it continues to the same weights, and where.

`resume/step-N/` below the run folder holds everything after optimizer step N: trained weights in their training
precision, optimizer moments, random states, data cursors, counters and the settings. Each save is a new folder that
appears whole by one rename; only then is the older one removed, so a kill at any moment leaves one to read.
Tensors are safetensors and the rest is JSON: nothing in it is executed.
"""

import hashlib
import json
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from euryale.base.base import Base
from euryale.errors import UserError
from euryale.heads.heads import Heads
from euryale.system.files import json_text, read_json, write_atomically
from euryale.system.tensor_files import read_tensors
from euryale.training.config import ObjectiveConfig, OptimConfig
from euryale.training.optimizer import moments, restore_moments
from euryale.training.saves import complete_saves

FORMAT_VERSION = 4  # 4: the averaged gradient of torch.optim.Muon
CHECKSUM = "checksum"  # of everything else in state.json
# What may differ between a run and its continuation, because no weight depends on it.
FREE_SETTINGS = ("eval_every", "eval_batches", "save_every", "log_every")
# Only the product with the number of processes decides a weight.
SHARED_SETTINGS = ("gradient_accumulation",)


def save_resume(
    run: Path, step: int, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, state: dict
) -> None:
    """Saves step `step` and removes older saves. `state` is JSON: counters, cursors, random states, settings."""
    remembered = {name: moments(optimizer, parameter) for name, parameter in parameters.items()}
    tensors = {f"weights/{name}": parameter.detach() for name, parameter in parameters.items()}
    tensors |= {f"{key}/{name}": value for name, of_one in remembered.items() for key, value in of_one.items()}
    shapes = {name: {key: list(value.shape) for key, value in of_one.items()} for name, of_one in remembered.items()}
    whole = {"format_version": FORMAT_VERSION, "step": step, "moments": shapes} | state
    facts = json_text(whole | {CHECKSUM: _checksum(whole)})
    folder = run / "resume" / f"step-{step:08d}"
    older = [path for path in complete_saves(run) if path != folder]
    # The same state is not saved again, for example by a resumed run that was stopped at once.
    if folder.is_dir() and (folder / "state.json").read_text() == facts:
        return
    with write_atomically(folder, last="state.json") as staged:
        staged.mkdir()
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, staged / "tensors.safetensors")
        (staged / "state.json").write_text(facts)
    for path in older:
        shutil.rmtree(path, ignore_errors=True)


def load_resume(run: Path, settings: Mapping[str, object]) -> tuple[Path, dict]:
    """The newest save of a run and its state.

    Raises UserError when there is none, it is damaged, or it was made with other settings (each is named).
    """
    saves = complete_saves(run)
    if not saves:
        raise UserError(f"resume={run}: nothing is saved there to go on from. Start anew without resume.")
    state = _read_state(saves[-1])
    _check_settings(run, state["settings"], settings)
    return saves[-1], state


def _read_state(save: Path) -> dict:
    """Raises UserError for one of another format, and for one that is damaged or was edited."""
    state = read_json(save / "state.json")
    if state.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{save} has format_version {state.get('format_version')!r}, this euryale reads {FORMAT_VERSION}."
        )
    if state.pop(CHECKSUM, None) not in (None, _checksum(state)):  # None: a save of before there were checksums
        raise UserError(
            f"{save / 'state.json'} is damaged: its checksum does not fit. Copy it again, or start anew without resume."
        )
    return state


def _checksum(state: Mapping[str, object]) -> str:
    """Of what JSON makes of it: tuples are lists, and keys are texts."""
    return hashlib.sha256(json.dumps(json.loads(json.dumps(state)), sort_keys=True).encode()).hexdigest()


def share_batches(run: Path, optim: OptimConfig, num_processes: int) -> OptimConfig:
    """The settings by which `num_processes` go on with a run: together they take as many batches a step as it did.

    Raises UserError when these cannot be shared evenly.
    """
    saves = complete_saves(run)
    settings = _read_state(saves[-1])["settings"] if saves else {}
    whole = settings.get("optim.batches_per_step", optim.gradient_accumulation * num_processes)
    if whole % num_processes:
        fitting = ", ".join(str(n) for n in range(1, whole + 1) if whole % n == 0)
        raise UserError(
            f"resume={run} takes {whole} batches a step, and {num_processes} processes cannot share these evenly. "
            f"Go on with {fitting} processes."
        )
    return replace(optim, gradient_accumulation=whole // num_processes)


def restore_tensors(
    save: Path,
    shapes: Mapping[str, Mapping[str, list[int]]],
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Copies weights in place, and the moments whose `shapes` the save's state names.

    In place, because a product may round differently for a matrix at another alignment, as in a mapped file.
    """
    expected = {f"weights/{name}": tuple(parameter.shape) for name, parameter in parameters.items()}
    for name, of_one in shapes.items():
        expected |= {f"{key}/{name}": tuple(shape) for key, shape in of_one.items()}
    tensors = read_tensors(save / "tensors.safetensors", expected)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"weights/{name}"])
            if shapes[name]:  # empty for what no step has moved yet
                saved = {key: tensors[f"{key}/{name}"] for key in shapes[name]}
                restore_moments(optimizer, parameter, saved)


def random_state(device: torch.device) -> dict[str, object]:
    """The state of every generator this process may draw from, as JSON can hold it."""
    return {
        "torch": _to_hex(torch.get_rng_state()),
        "device": _to_hex(torch.cuda.get_rng_state(device)) if device.type == "cuda" else "",
        "python": list(random.getstate()),
    }


def restore_random_state(states: Sequence[dict], process: int, device: torch.device) -> None:
    """The inverse of random_state, of which each process saved one; one that is new draws numbers of its own."""
    state = states[process % len(states)]
    torch.set_rng_state(_from_hex(state["torch"]))
    if device.type == "cuda" and state["device"]:
        torch.cuda.set_rng_state(_from_hex(state["device"]), device)
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    if process >= len(states):
        torch.manual_seed(int(torch.randint(2**62, ())) + process)


def run_settings(
    base: Base,
    heads: Heads | None,
    objective: ObjectiveConfig,
    optim: OptimConfig,
    others: Mapping[str, object],
    num_processes: int,
) -> dict[str, object]:
    """Everything the weights of a run depend on, as dotted keys; `others` are dotted already."""
    identity = {key: value for key, value in base.identity().items() if key not in ("path", "revision")}
    own = {
        "base": identity | {"dtype": str(base.dtype).removeprefix("torch.")},
        "heads": heads.config.design() if heads is not None else {},
        "objective": asdict(objective),
        "optim": {key: value for key, value in asdict(optim).items() if key not in FREE_SETTINGS + SHARED_SETTINGS}
        | {"batches_per_step": optim.gradient_accumulation * num_processes},
    }
    return {**others, **flatten(own)}


def flatten(settings: Mapping, prefix: str = "") -> dict[str, object]:
    """Nested settings as dotted keys, as a user types them."""
    flat: dict[str, object] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat


def _to_hex(state: Tensor) -> str:
    return bytes(state.tolist()).hex()


def _from_hex(text: str) -> Tensor:
    return torch.tensor(list(bytes.fromhex(text)), dtype=torch.uint8)


def _check_settings(run: Path, saved: Mapping[str, object], given: Mapping[str, object]) -> None:
    missing = "(not set)"
    changed = [
        f"{key}: {saved.get(key, missing)} then, {given.get(key, missing)} now"
        for key in sorted(set(saved) | set(given))
        if saved.get(key, missing) != given.get(key, missing)
    ]
    if changed:
        raise UserError(
            f"resume={run} would not continue the same run, because settings changed: {'; '.join(changed)}. "
            "Give the old values, or start anew without resume."
        )


def drop_older_saves(run: Path) -> None:
    """Removes what a kill kept `save_resume` from removing."""
    for path in complete_saves(run)[:-1]:
        shutil.rmtree(path, ignore_errors=True)
