"""Location of a checkpoint. Without torch, so that a wrong one is said at once."""

from pathlib import Path

from euryale.errors import UserError
from euryale.system.paths import user_path

DESCRIPTION = "heads.json"


def find_checkpoint(name: str, root: Path, setting: str = "checkpoint") -> Path:
    """The checkpoint folder a user means: `last` is the newest below `root`, anything else a path (also below `root`).

    Raises UserError that names the `setting` and lists what exists.
    """
    if name != "last":
        for folder in (user_path(name, setting), root / name):
            if (folder / DESCRIPTION).is_file():
                return folder
            if inside := sorted(str(path.parent) for path in folder.glob(f"*/{DESCRIPTION}")):
                raise UserError(
                    f"{setting}={name} must be a checkpoint, a folder with {DESCRIPTION}; this folder holds some: "
                    f"{', '.join(inside[:8])}. Name one of them."
                )
    known = sorted(root.rglob(DESCRIPTION), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    known = [path for path in known if not any(part.startswith(".") for part in path.relative_to(root).parts)]
    if name == "last" and known:
        return known[0].parent
    listing = ", ".join(str(path.parent) for path in known[:8]) or "none yet"
    raise UserError(
        f"{setting}={name} must be a checkpoint, a folder with {DESCRIPTION}; there is none. "
        f"Below {root} there are: {listing}. Name one of them, or train one with train/run.py."
    )
