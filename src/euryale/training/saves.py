"""Saves of a run, and the run that `resume=` means.

A run folder holds its settings, and below `resume/` a folder for each save (resume.py says what is in it).
"""

from pathlib import Path

from euryale.errors import UserError
from euryale.system.paths import user_path

CONFIG_FILE = "config.yaml"  # the settings of a run, in its folder: all that is needed to go on with it


def find_run(name: str, root: Path) -> Path:
    """The run folder that `resume=` means: `last` is the one saved last below `root`, anything else a path.

    A run that was killed before its first save is one too: it begins again. Raises UserError that lists the runs that
    can be resumed.
    """
    if name != "last":
        for folder in (user_path(name, "resume"), root / name):
            if _latest(folder):
                return folder
    found = {path.parent for kept in ("resume", CONFIG_FILE) for path in root.rglob(kept)}
    times = {run: path.stat().st_mtime_ns for run in found if (path := _latest(run))}
    runs = sorted(times, key=lambda run: times[run], reverse=True)
    if name == "last" and runs:
        return runs[0]
    listing = ", ".join(str(run) for run in runs[:8]) or "none"
    raise UserError(
        f"resume={name}: nothing is saved there to go on from. Below {root} these can be resumed: {listing}. "
        "Name one of them, or start anew without resume."
    )


def is_unsaved(run: Path) -> bool:
    """Whether a run has begun, and was killed before it had saved or left anything."""
    left = any((run / made).exists() for made in ("heads.json", "base"))  # a finished run whose saves were deleted
    return (run / CONFIG_FILE).is_file() and not left and not complete_saves(run)


def _latest(run: Path) -> Path | None:
    """What there is to go on from: the last save, or the settings of a run without one."""
    if is_unsaved(run):
        return run / CONFIG_FILE
    return next(reversed(complete_saves(run)), None)


def complete_saves(run: Path) -> list[Path]:
    """Complete saves, oldest first; half-written ones carry another name."""
    return sorted(path for path in (run / "resume").glob("step-*") if path.is_dir())
