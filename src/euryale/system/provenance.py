"""Provenance of a result: command line, commit and versions of the libraries."""

import importlib.metadata
import platform
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

LIBRARIES = ("euryale", "torch", "transformers", "tokenizers", "safetensors", "accelerate", "bitsandbytes", "peft")


def provenance() -> dict[str, object]:
    """Where a result came from: command line, git commit, versions, machine, time."""
    return {
        "argv": sys.argv,
        "git_commit": _git_commit(Path(__file__).resolve().parents[3]),
        "versions": {name: version for name in LIBRARIES if (version := _version(name))},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _git_commit(root: Path) -> str | None:
    """The commit of this project's clone, with a + when files were changed; None for an installed package."""
    if not (root / ".git").exists() or not (root / "src" / "euryale").is_dir():
        return None
    commands: Iterable[list[str]] = (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
    answers = []
    for command in commands:
        try:
            done = subprocess.run(["git", "-C", str(root), *command], capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):  # no git here: a result without a commit is still a result
            return None
        answers.append(done.stdout.strip() if done.returncode == 0 else "")
    commit, changes = answers
    return (commit + ("+" if changes else "")) or None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
