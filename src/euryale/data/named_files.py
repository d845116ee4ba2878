"""Files that data.files names: paths, folders and globs; and what a folder holds that is not read."""

import glob
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from euryale.errors import UserError
from euryale.system.paths import user_path

SUFFIXES = (".txt", ".md", ".py", ".json", ".jsonl", ".parquet")  # each but parquet also with .gz after it
_KNOWN = f"{', '.join(SUFFIXES)} (or .gz)"
_MOST_KINDS = 6  # that a notice names


class NamedFiles(NamedTuple):
    """The files to read, each once, sorted inside a folder or glob; and notices of what was left out, a line each."""

    paths: list[Path]
    notices: list[str]


def find_files(names: Sequence[str]) -> NamedFiles:
    """What paths, folders (recursive) and globs stand for.

    Raises UserError for a name that stands for nothing that can be read, and for a file named alone that is empty.
    """
    if not names:
        raise UserError("data.files is empty. Name files, folders or globs: data.files=my/text.jsonl")
    found: dict[Path, None] = {}
    notices = []
    for name in names:
        paths = _matches(name)
        kinds = {path: _unread_kind(path) for path in paths}
        found.update(dict.fromkeys(path for path in paths if kinds[path] is None))
        left_out = Counter(kind for kind in kinds.values() if kind is not None)
        if left_out.total():
            notices.append(f"data.files={name}: {_wording(left_out)}. Read are {_KNOWN}.")
        if left_out.total() == len(paths):
            raise UserError(
                f"data.files={name} holds no file that can be read: {_wording(left_out)}. Read are {_KNOWN}."
            )
    return NamedFiles(list(found), notices)


def suffix(path: Path) -> str:
    """In small letters; of a gzip file the one before .gz."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _matches(name: str) -> list[Path]:
    """Everything that the name stands for, readable or not. Raises UserError where that is nothing."""
    path = user_path(name, "data.files")
    if path.is_dir():
        inside = sorted(p for p in path.rglob("*") if (p.is_symlink() or p.is_file()) and not _is_hidden(p, path))
        if not inside:
            raise UserError(f"data.files={name}: this folder holds no file. Read are {_KNOWN}.")
        return inside
    if path.is_file():
        if not _is_readable(path):
            raise UserError(f"data.files={name}: cannot read {path.name}. Known: {_KNOWN}")
        if path.stat().st_size == 0:
            raise UserError(f"{path} is empty. Remove it from data.files or write rows into it")
        return [path]
    if path.exists():
        raise UserError(f"data.files={name} must be a file or folder; got a pipe or a device. Write a file of it.")
    if not glob.has_magic(name):
        raise UserError(f"data.files={name}: there is no such file or folder (looked in {Path.cwd()})")
    matches = sorted(p for p in map(Path, glob.glob(str(path), recursive=True)) if not p.is_dir())
    if not matches:
        raise UserError(f"data.files={name}: the pattern matches no file (in {Path.cwd()})")
    return matches


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith((".", "__pycache__")) for part in path.relative_to(folder).parts)


def _is_readable(path: Path) -> bool:
    return suffix(path) in SUFFIXES and not path.name.lower().endswith(".parquet.gz")


def _unread_kind(path: Path) -> str | None:
    """The kind of a file that is not read; None for one that is."""
    if not path.exists():
        return "broken link"
    if path.is_dir():
        return "link to a folder"  # which a walk does not follow
    if not _is_readable(path):
        return "".join(path.suffixes[-2:] if path.suffix == ".gz" else path.suffixes[-1:]) or "without a suffix"
    return "empty" if path.stat().st_size == 0 else None


def _wording(left_out: Counter[str]) -> str:
    kinds = [f"{number} {kind}" for kind, number in left_out.most_common(_MOST_KINDS)]
    more = [f"{len(left_out) - _MOST_KINDS} other kinds"] if len(left_out) > _MOST_KINDS else []
    verb = "files were" if left_out.total() > 1 else "file was"
    return f"{left_out.total()} {verb} left out ({', '.join([*kinds, *more])})"
