"""Location of a model: a folder or file on this machine, or a hub id.

Without torch, so that a wrong one is said at once.
"""

import logging
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from euryale.base.wheel_model import PREFIX, find_wheel_model
from euryale.errors import UserError
from euryale.system.paths import PROJECT, user_path

GGUF_SUFFIX = ".gguf"
log = logging.getLogger(__name__)


def find_model(path: str) -> str:
    """A folder or GGUF file (from here, from the project, or in an installed package) or a hub id."""
    if path.startswith(PREFIX):
        return find_wheel_model(path)
    for candidate in (user_path(path, "base.path"), PROJECT / path):
        if candidate.is_dir() or (candidate.is_file() and candidate.suffix == GGUF_SUFFIX):
            return str(candidate)
    if not _is_hub_id(path) or path.endswith(GGUF_SUFFIX) or path.startswith("checkpoints/"):
        looked = " and ".join(dict.fromkeys([str(Path.cwd()), str(PROJECT)]))
        raise UserError(
            f"base.path={path}: there is no such folder (looked in {looked}). "
            "Give a folder that holds a Hugging Face model, or a hub id like meta-llama/Llama-3.1-8B."
        )
    return path


def _is_hub_id(path: str) -> bool:
    try:
        validate_repo_id(path)
    except HFValidationError:
        return False
    return True


def hub_answers(repo: str, revision: str | None) -> bool:
    """Asks the hub once, briefly: its own client would retry for half a minute. A cached model needs no answer."""
    try:
        huggingface_hub.get_session().head(constants.ENDPOINT, timeout=5.0)
    except Exception as error:  # the HTTP library's errors differ between hub versions; the outcome is one
        if is_cached(repo, revision):
            log.warning("the hub (%s) does not answer: using the copy of %s in the cache", constants.ENDPOINT, repo)
            return False
        raise UserError(
            f"base.path={repo}: no such folder here, and the hub at {constants.ENDPOINT} cannot be reached "
            f"({type(error).__name__}). Give a folder that holds the model, or base=tiny, which needs no download."
        ) from error
    return True


def is_cached(repo: str, revision: str | None) -> bool:
    """Whether the hub's own cache on this machine has the model, as far as its config.json tells."""
    return isinstance(huggingface_hub.try_to_load_from_cache(repo, "config.json", revision=revision), str)
