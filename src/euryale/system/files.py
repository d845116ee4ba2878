"""How is a file or folder written so that a kill or a full disk leaves either the old one or the new one?

Everything is written beside its target, flushed to the disk, and renamed: a rename either happened or did not.
What could not be written is one `UserError`; the target is then what it was before.
"""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from euryale.errors import UserError


@contextmanager
def write_atomically(target: Path, last: str = "") -> Iterator[Path]:
    """Yields a path to write a file, or make a folder, at; on a clean exit that becomes `target`.

    An existing file is replaced. Into an existing folder the new files move one by one, `last` being the last of
    them (the file that says what the others are); its other files stay. A folder that does not exist yet appears
    whole. Raises UserError when the disk is full, read-only or out of reach.
    """
    merges = target.is_dir()
    staged = target / ".new.tmp" if merges else target.with_name(f".{target.name}.tmp")
    try:
        staged.parent.mkdir(parents=True, exist_ok=True)
        _remove(staged)  # what a killed process left
        yield staged
        _flush(staged)
        if merges:
            for source in sorted(staged.iterdir(), key=lambda path: (path.name == last, path.name)):
                _replace(source, target / source.name)
            staged.rmdir()
        else:
            os.replace(staged, target)
        _flush_entry(target.parent)
    except (OSError, SafetensorError) as error:  # safetensors wraps the system's errors in its own
        raise UserError(
            f"{target} could not be saved: {error}. What was there before is unchanged. "
            "Make room or give another folder, then go on."
        ) from error
    finally:
        _remove(staged)


def check_writable(folder: Path, asked: str) -> None:
    """Raises UserError when `folder` could not be made, or nothing be written into it. Leaves nothing behind.

    `asked` begins the message, as "output=runs". Minutes of work must not end at it.
    """
    folder = folder.absolute()  # "." has no parts, and a relative folder may have no parent that exists
    try:
        there = next(place for place in (folder, *folder.parents) if place.exists())
        if max(len(os.fsencode(part)) for part in folder.parts) > os.pathconf(there, "PC_NAME_MAX"):
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise UserError(
            f"{asked}: nothing can be written to {folder} ({error.strerror}). Give another folder, or make room there."
        ) from error


def write_json(path: Path, content: object) -> None:
    """Writes readable JSON; the old file stays whole if this fails."""
    with write_atomically(path) as staged:
        staged.write_text(json_text(content), encoding="utf-8")


def json_text(content: object) -> str:
    """The one way JSON is laid out in our files."""
    return json.dumps(content, indent=2) + "\n"


def read_json(path: Path) -> dict:
    """The object in a JSON file. Raises UserError, naming the file, when it is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}). Is this the folder of a finished save?") from error
    except ValueError as error:  # broken JSON, or bytes that are no text
        raise UserError(f"{path} is damaged: {error}. Copy it again or use another checkpoint.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} should hold a JSON object, not {type(content).__name__}. Use another checkpoint.")
    return content


def _replace(source: Path, target: Path) -> None:
    """Moves a file or folder into place. A folder cannot be renamed onto a full one, so the old one goes first."""
    if target.is_dir():
        shutil.rmtree(target)
    os.replace(source, target)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Puts a file, or a folder with everything below it, on the disk itself."""
    for folder, _, names in os.walk(path):
        for name in names:
            _flush_entry(Path(folder) / name)
        _flush_entry(Path(folder))
    if path.is_file():
        _flush_entry(path)


def _flush_entry(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
