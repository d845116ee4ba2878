"""Files and folders written so that a kill or a full disk leaves either the old one or the new one.

Everything is written next to its target, flushed to the disk, and renamed: a rename either happened or did not.
What could not be written is one `UserError`, which says what is in place.
"""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from euryale.errors import UserError

# Errors of writing that carry no file name.
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}


@contextmanager
def write_atomically(target: Path, last: str = "") -> Iterator[Path]:
    """Yields a path to write a file, or make a folder, at; on a clean exit that becomes `target`.

    An existing file is replaced. Into an existing folder the new files move one by one, `last` being the last of
    them (the file that says what the others are); its other files stay. A folder that does not exist yet appears
    whole. After an error nothing is left of it, nor of folders made for it. Raises UserError when the disk is full,
    read-only or out of reach; any other error of the caller's own passes through.
    """
    merges = target.is_dir()
    staged = target / ".new.tmp" if merges else target.with_name(f".{target.name}.tmp")
    moved: list[str] = []
    made = [folder for folder in (staged.parent, *staged.parent.parents) if not folder.exists()]
    with _disk_errors(target, moved):
        staged.parent.mkdir(parents=True, exist_ok=True)
        remove(staged)  # what a killed process left
    try:
        try:
            yield staged
        except (OSError, SafetensorError) as error:
            if not _is_of_writing(error, staged):
                raise
            raise _refusal(target, moved, error) from error
        with _disk_errors(target, moved):
            open_to_readers(staged)
            _flush(staged)
            if merges:
                for source in sorted(staged.iterdir(), key=lambda path: (path.name == last, path.name)):
                    _replace(source, target / source.name)
                    moved.append(source.name)
                staged.rmdir()
            else:
                os.replace(staged, target)
            _flush_entry(target.parent)
    finally:
        remove(staged)
        if not target.exists():
            with suppress(OSError):  # not there after all, or somebody else has put something into it
                for folder in made:
                    folder.rmdir()


@contextmanager
def _disk_errors(target: Path, moved: list[str]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _refusal(target, moved, error) from error


def _is_of_writing(error: OSError | SafetensorError, staged: Path) -> bool:
    """Whether the error comes from what was being written, not from another file that the caller reads."""
    if isinstance(error, SafetensorError):
        return "I/O error" in str(error)  # safetensors wraps the system's errors in its own
    if error.filename is None:
        return error.errno in _DISK_ERRORS
    if error.errno in _DISK_ERRORS and error.filename2 is not None:
        return True  # a copy: the file that is read stands first
    written = Path(os.fsdecode(error.filename))
    return staged == written or staged in written.parents


def _refusal(target: Path, moved: list[str], error: Exception) -> UserError:
    state = "What was there before is unchanged."
    if moved:
        state = f"The folder is a mixture now: {', '.join(moved)} are new in it, the other files are the old ones."
    return UserError(f"{target} could not be saved: {error}. {state} Make room or give another folder, then go on.")


def check_writable(folder: Path, asked: str) -> None:
    """Raises UserError when `folder` could not be made, or nothing be written into it. Leaves no trace.

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
    except (ValueError, RecursionError) as error:  # broken JSON, or bytes that are not text
        raise UserError(f"{path} is damaged: {error}. Copy it again or use another checkpoint.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object; got {type(content).__name__}. Use another checkpoint.")
    return content


def _replace(source: Path, target: Path) -> None:
    """Moves a file or folder into place. A folder cannot be renamed onto a full one: the old one steps aside first."""
    if not target.is_dir():
        os.replace(source, target)
        return
    aside = source.with_name(f".{target.name}.old.tmp")
    os.replace(target, aside)
    try:
        os.replace(source, target)
    except OSError:
        os.replace(aside, target)
        raise
    remove(aside)


def remove(path: Path) -> None:
    """Removes a file, a link, or a folder with all that is in it; nothing happens where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def open_to_readers(staged: Path) -> None:
    """Gives files the access that new files have here: safetensors leaves its own readable to their owner alone, and
    another user's server could not load them."""
    mask = os.umask(0)
    os.umask(mask)
    for path in (staged, *staged.rglob("*")) if staged.is_dir() else (staged,):
        if path.is_file():
            path.chmod(path.stat().st_mode | (0o666 & ~mask))


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
