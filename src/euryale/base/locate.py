"""Checks that a model, in a folder or on the hub, is whole before its weights are read, and its config.json."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig

from euryale.base.config import BaseConfig
from euryale.base.find_model import find_model, hub_answers
from euryale.base.gguf import dequantised, find_gguf, source_digest
from euryale.base.wheel_model import PREFIX
from euryale.errors import UserError
from euryale.system.memory import is_out_of_memory
from euryale.system.paths import PROJECT


def check_folder(folder: Path, asked: str, is_whole: bool = True) -> None:
    """A model folder has a config, weights and a tokenizer, and all of them can be read; not `is_whole`: a config."""
    if (adapter := folder / "adapter_config.json").is_file():
        raise UserError(
            f"base.path={asked}: {adapter} says that this is an adapter (peft), not a whole model. Merge it into its "
            "base (peft: merge_and_unload, then save_pretrained) and give that folder."
        )
    if not (folder / "config.json").is_file():
        raise UserError(
            f"base.path={asked}: {folder} must be a model folder; it has no config.json. Found: {_listing(folder)}."
        )
    for name in ("config.json", "generation_config.json"):  # transformers passes over a damaged one of the second
        if (folder / name).is_file():
            _check_settings(folder / name, asked)
    if not is_whole:
        return
    if not any(path.is_file() for pattern in ("*.safetensors", "*.bin") for path in folder.glob(pattern)):
        raise UserError(
            f"base.path={asked}: {folder} has no weights (*.safetensors or *.bin). Found: {_listing(folder)}."
        )
    names = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
    if not any((folder / name).is_file() for name in names):
        raise UserError(
            f"base.path={asked}: {folder} has no tokenizer ({', '.join(names)}). Copy it from the model it came from."
        )


def _check_settings(file: Path, asked: str) -> None:
    """Raises UserError for a file that is not one JSON object."""
    try:
        settings = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"base.path={asked}: {file} is not JSON ({error}). Copy the model again.") from error
    if not isinstance(settings, dict):
        raise UserError(f"base.path={asked}: {file} must hold one JSON object; got {settings!r:.40}. Copy it again.")
    if not isinstance(settings.get("quantization_config", {}), dict | None):
        raise UserError(f"base.path={asked}: quantization_config in {file} must be an object. Copy it again.")


def _listing(folder: Path) -> str:
    names = sorted(p.name for p in folder.iterdir())
    return ", ".join(names[:8]) + (" ..." if len(names) > 8 else "") if names else "nothing"


def gguf_file(path: str) -> Path | None:
    """The GGUF file of a base by the name it was loaded with; None for a base in another format."""
    found = Path(find_model(path))
    return find_gguf(found, path) if found.exists() else None


def read_config(config: BaseConfig, is_whole: bool = True) -> PreTrainedConfig:
    """The base's own config.json; its weights are not touched, and unless `is_whole` they need not be there. Raises
    UserError as load_base does."""
    path, source = find_source(config, is_whole)
    return read_config_at(config, path, source)


def find_source(config: BaseConfig, is_whole: bool = True) -> tuple[str, dict[str, Any]]:
    """A folder or hub id, and how transformers is to look for it."""
    if not config.path:
        raise UserError(
            "base.path is not set. Give base=hf base.path=FOLDER_OR_HUB_ID, or a ready-made base such as base=tiny."
        )
    if not isinstance(config.path, str):
        raise UserError(f"base.path must be a folder or a hub id; got {config.path!r:.80}.")
    path = find_model(config.path)
    if Path(path).exists() and (file := find_gguf(Path(path), config.path)) is not None:
        path = str(dequantised(file, config.path))
    is_local = Path(path).is_dir()
    if is_local:
        if config.revision is not None:
            raise UserError(
                f"base.revision must be left out where base.path is a folder or a file; got {config.revision}. "
                f"{config.path} is on this machine, and is what it is."
            )
        check_folder(Path(path), config.path, is_whole)
    is_offline = is_local or not hub_answers(path, config.revision)
    # Code that comes with a model is never run, nor is anybody asked whether it should be.
    return path, {"revision": config.revision, "local_files_only": is_offline, "trust_remote_code": False}


def read_config_at(config: BaseConfig, path: str, source: dict[str, Any]) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(path, **source)
    except Exception as error:  # as in load_base
        raise UserError(load_message(str(config.path), error)) from error


def load_message(asked: str, error: Exception, device: torch.device | None = None) -> str:
    """What to tell a user whose base did not load onto `device`, or whose config could not be read."""
    if device is not None and is_out_of_memory(error):
        return (
            f"base.path={asked} does not fit into the memory of {device} "
            f"({str(error).partition(chr(10))[0] or type(error).__name__}). Free memory, or use base.dtype=bfloat16, "
            "base.quantization=nf4 or a smaller base."
        )
    text = " ".join(str(error).split())
    if len(text) > 400:
        text = text[:400] + " ..."
    text = text if text.endswith((".", "!", "?")) else f"{text}."
    if "trust_remote_code" in str(error) or "weights_only" in str(
        error
    ):  # their advice is to run what came with the model
        text = "it comes with code of its own, which is never run here."
        advice = "Give weights in safetensors, of a family in docs/families.md."
    elif Path(find_model(asked)).exists():
        advice = "Copy the model again, or correct its files."
    else:
        advice = "If it is a hub id and this machine is offline, give a folder that holds the model instead."
    return f"base.path={asked} could not be loaded ({type(error).__name__}): {text} {advice}"


def known_as(asked: str, path: str) -> str:
    """The name that a checkpoint remembers: it is opened from other working folders."""
    is_portable = not Path(path).is_dir() or asked.startswith(PREFIX) or (PROJECT / asked).exists()
    return asked if is_portable else str(Path(asked).expanduser().resolve())


def fingerprint(path: str, config: PreTrainedConfig) -> str:
    """Names the weights: sizes and samples of the weight files, the same whatever dtype they are loaded in."""
    folder = Path(path)
    if not folder.is_dir():
        return f"hub:{getattr(config, '_commit_hash', None)}"
    if (digest_of_gguf := source_digest(folder)) is not None:
        return digest_of_gguf
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin")):
        size = file.stat().st_size
        digest.update(f"{file.name}:{size};".encode())
        with file.open("rb") as stream:
            for part in range(8):
                stream.seek(size * part // 8)
                digest.update(stream.read(4096))
    return digest.hexdigest()[:32]
