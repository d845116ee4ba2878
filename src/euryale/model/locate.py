"""Where is the model that a user means, and is it whole? Asked before its weights take memory or time."""

import json
import logging
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants

from euryale.errors import UserError

PROJECT = Path(__file__).resolve().parents[3]  # where the bundled checkpoints/ and data/ lie in a clone
log = logging.getLogger(__name__)


def output_root(output: str) -> Path:
    """`output`, below the project unless it is an absolute path: `last` finds runs from any working folder."""
    return PROJECT / Path(output).expanduser()


def find_model(path: str) -> str:
    """A folder (from here, or from the project) or a hub id."""
    for candidate in (Path(path).expanduser(), PROJECT / path):
        if candidate.is_dir():
            return str(candidate)
    looks_like_id = path.count("/") <= 1 and not path.startswith((".", "/", "~")) and bool(path)
    if not looks_like_id or path.startswith("checkpoints/"):
        looked = " and ".join(dict.fromkeys([str(Path.cwd()), str(PROJECT)]))
        raise UserError(
            f"base.path={path}: there is no such folder (looked in {looked}). "
            "Give a folder that holds a Hugging Face model, or a hub id like meta-llama/Llama-3.1-8B."
        )
    return path


def hub_answers(repo: str, revision: str | None) -> bool:
    """Asks the hub once, briefly: its own client would retry for half a minute. A cached model needs no answer."""
    try:
        huggingface_hub.get_session().head(constants.ENDPOINT, timeout=5.0)
    except Exception as error:  # the HTTP library's errors differ between hub versions; the outcome is one
        if isinstance(huggingface_hub.try_to_load_from_cache(repo, "config.json", revision=revision), str):
            log.warning("the hub (%s) does not answer: using the copy of %s in the cache", constants.ENDPOINT, repo)
            return False
        raise UserError(
            f"base.path={repo}: no such folder here, and the hub at {constants.ENDPOINT} cannot be reached "
            f"({type(error).__name__}). Give a folder that holds the model, or base=tiny, which needs no download."
        ) from error
    return True


def check_folder(folder: Path, asked: str, is_whole: bool = True) -> None:
    """A model folder has a config, weights and a tokenizer, and all of them can be read; not `is_whole`: a config."""
    if not (folder / "config.json").is_file():
        raise UserError(
            f"base.path={asked}: {folder} has no config.json, so it is no model folder. Found: {_listing(folder)}."
        )
    try:
        json.loads((folder / "config.json").read_text())
    except ValueError as error:
        raise UserError(
            f"base.path={asked}: {folder}/config.json is not JSON ({error}). Copy the model again."
        ) from error
    if not is_whole:
        return
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        raise UserError(
            f"base.path={asked}: {folder} has no weights (*.safetensors or *.bin). Found: {_listing(folder)}."
        )
    names = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
    if not any((folder / name).is_file() for name in names):
        raise UserError(
            f"base.path={asked}: {folder} has no tokenizer ({', '.join(names)}). Copy it from the model it came from."
        )


def _listing(folder: Path) -> str:
    names = sorted(p.name for p in folder.iterdir())
    return ", ".join(names[:8]) + (" ..." if len(names) > 8 else "") if names else "nothing"
