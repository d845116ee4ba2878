"""Paths of the project: where bundled files lie and where results go."""

import os
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[3]  # where the bundled checkpoints/ and data/ lie in a clone


def output_root(output: str) -> Path:
    """`output`, below the project unless it is an absolute path: `last` finds runs from any working folder."""
    return PROJECT / Path(output).expanduser()


def cache_root() -> Path:
    """The user's cache folder of this product; XDG_CACHE_HOME moves it. Whatever lies in it can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "euryale"
