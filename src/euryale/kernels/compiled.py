"""Where compiled kernels are kept: EURYALE_CACHE, else the user's cache folder."""

import logging
import os
import tempfile
from pathlib import Path

log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Where compiled kernels are kept."""
    if chosen := os.environ.get("EURYALE_CACHE"):
        return Path(chosen).expanduser() / "kernels"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "euryale" / "kernels"


def keep(target: Path, code: bytes) -> None:
    """Writes next to the target under a name of its own, then renames: two processes may do so at once.

    A folder that cannot be written is one warning.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=target.name, delete=False) as staged:
            staged.write(code)
        os.replace(staged.name, target)
    except OSError as error:
        log.warning(
            "kernels: %s cannot be kept (%s), so every start compiles anew; EURYALE_CACHE names another folder",
            target, error.strerror,
        )  # fmt: skip
