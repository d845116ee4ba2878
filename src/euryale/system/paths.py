"""Paths of the project: where bundled files lie and where results go."""

import os
import shlex
from pathlib import Path

from euryale.errors import UserError

PROJECT = Path(__file__).resolve().parents[3]  # where the bundled checkpoints/ and data/ lie in a clone


def output_root(output: str) -> Path:
    """`output`, below the project unless it is an absolute path: `last` finds runs from any working folder."""
    return PROJECT / user_path(output, "output")


def user_path(name: str, setting: str) -> Path:
    """A path as a user writes it, with ~ for the home folder; nothing need be there.

    Raises UserError, with the setting, for what no path can be or where nobody may look.
    """
    try:
        path = Path(name).expanduser()
        path.exists()
    except (OSError, RuntimeError) as error:  # too long, a closed folder on the way; ~ of an unknown user
        reason = error.strerror if isinstance(error, OSError) else str(error)
        shown = name if len(name) <= 80 else f"{name[:80]}..."
        raise UserError(f"{setting}={shown} cannot be looked for ({reason}). Give another path.") from error
    return path


def argument(name: str, path: str | Path) -> str:
    """NAME=PATH as a shell takes it, for commands that a person may copy."""
    return shlex.quote(f"{name}={path}")


def cache_root() -> Path:
    """The user's cache folder of this product; XDG_CACHE_HOME moves it. Whatever lies in it can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "euryale"
