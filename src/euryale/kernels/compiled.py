"""Where compiled kernels are kept: EURYALE_CACHE, else the user's cache folder."""

import logging
import os
import tempfile
from pathlib import Path

from euryale.errors import UserError
from euryale.system.files import open_to_readers

log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Where compiled kernels are kept. Raises UserError where that is the home of a user who has none."""
    try:
        if chosen := os.environ.get("EURYALE_CACHE"):
            return Path(chosen).expanduser() / "kernels"
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "euryale" / "kernels"
    except RuntimeError as error:
        raise UserError(f"kernels: EURYALE_CACHE must name a folder to keep compiled kernels in ({error}).") from error


def keep(target: Path, code: bytes) -> None:
    """Writes next to the target under a name of its own, then renames: two processes may do so at once.

    A folder that cannot be written is one warning.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=target.name, delete=False) as staged:
            try:
                staged.write(code)
                staged.flush()  # a full disk shows here
                open_to_readers(Path(staged.name))
                os.replace(staged.name, target)
            except OSError:
                os.unlink(staged.name)
                raise
    except OSError as error:
        log.warning(
            "kernels: %s cannot be kept (%s), so every start compiles anew; EURYALE_CACHE names another folder",
            target, error.strerror,
        )  # fmt: skip
