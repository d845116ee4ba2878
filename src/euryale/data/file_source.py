"""Files as a source of rows, with an exact cursor.

One class serves the standard library, the user's files and the text that the base wrote: they differ in the files and
in how a record becomes a row.
"""

from __future__ import annotations

import hashlib
import json
import random
import sysconfig
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from euryale.data.bad_rows import BadRows
from euryale.data.records import Record, read_records
from euryale.data.rows import Row, row_from_record, row_from_text
from euryale.errors import UserError


class FileSource:
    """The rows of `paths`; each pass takes the files in another order, which depends on (seed, pass) alone."""

    def __init__(
        self,
        paths: list[Path],
        to_row: Callable[[Record], Row],
        seed: int = 0,
        on_error: str = "stop",
        separator: str = "auto",
    ) -> None:
        self._paths = paths
        self._to_row = to_row
        self._seed = seed
        self._bad_rows = BadRows(on_error)
        self._separator = separator
        self._num_passes = 0
        self._num_files = 0  # done in this pass
        self._num_records = 0  # done in the file that is open
        # Names and sizes: the folder they are in may move between runs.
        names = "\n".join(f"{path.name} {path.stat().st_size}" for path in paths)
        self._fingerprint = hashlib.sha1(names.encode()).hexdigest()

    @property
    def num_skipped(self) -> int:
        return self._bad_rows.count

    def __iter__(self) -> Iterator[Row]:
        order = list(self._paths)
        random.Random(f"files {self._seed} {self._num_passes}").shuffle(order)
        while self._num_files < len(order):
            records = read_records(order[self._num_files], self._num_records, self._separator)
            while True:
                try:
                    record = next(records, None)
                    if record is None:
                        break
                    self._num_records = record.position
                    if isinstance(record.value, UserError):
                        raise record.value
                    row = self._to_row(record)
                except UserError as problem:
                    self._bad_rows.meet(problem)
                else:
                    yield row
            self._num_files, self._num_records = self._num_files + 1, 0
        self._num_passes, self._num_files = self._num_passes + 1, 0
        self._bad_rows.report()

    def state_dict(self) -> dict[str, Any]:
        return {
            "files": self._fingerprint,
            "num_passes": self._num_passes,
            "num_files": self._num_files,
            "num_records": self._num_records,
            "num_skipped": self._bad_rows.count,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["files"] != self._fingerprint:
            raise UserError(
                f"cannot go on where the last run stopped: the data files ({len(self._paths)}, the first is "
                f"{self._paths[0]}) are not those it read. Restore them, or start a new run"
            )
        self._num_passes = state["num_passes"]
        self._num_files = state["num_files"]
        self._num_records = state["num_records"]
        self._bad_rows.restart(state["num_skipped"])


SMALL_BYTES = 24 * 1024  # about 100 modules and 0.3 M tokens: what a base of 6 M parameters can learn well


def library_files(modules: str) -> list[Path]:
    """This Python's own library: its `small` top-level modules, all at the `top` level, or `all` of it."""
    root = library_root()
    paths = list(root.rglob("*.py") if modules == "all" else root.glob("*.py"))
    if modules == "small":
        paths = [path for path in paths if path.stat().st_size <= SMALL_BYTES]
    not_the_library = {"site-packages", "dist-packages", "__pycache__"}
    found = sorted(p for p in paths if not not_the_library & set(p.relative_to(root).parts) and p.stat().st_size > 0)
    if not found:
        raise UserError(f"data=stdlib found no Python source under {root}. Use data=files with text of your own")
    return found


@cache
def library_root() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def library_row(record: Record) -> Row:
    """A row is a piece of a module. Its key is "path below the library's root#number of the piece", so that the same
    pieces are held out wherever the same Python is."""
    file, _, _ = record.origin.rpartition(":")
    relative = Path(file).relative_to(library_root()).as_posix()
    return Row(key=f"{relative}#{record.position}", origin=record.origin, text=str(record.value))


def file_row(record: Record, column: str | None) -> Row:
    if isinstance(record.value, str):
        return row_from_text(record.value, record.origin)
    return row_from_record(record.value, record.origin, column)


def shard_files(folder: Path) -> list[Path]:
    """The parquet shards of text that the base wrote, as the `manifest.json` among them lists them."""
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        raise UserError(f"{folder}: no manifest.json here, so it holds no regenerated text. Run train/regenerate.py")
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        if content.get("is_complete") is False:
            raise UserError(f"{folder} is not finished. Go on with train/regenerate.py and the settings it began with")
        shards = [folder / name for name in content["shards"]]
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{manifest} does not list shards ({error!r}). Run train/regenerate.py again") from error
    if not shards or not all(shard.is_file() for shard in shards):
        raise UserError(f"{folder}: not all {len(shards)} shards of the manifest are there. Run train/regenerate.py")
    return shards


def shard_row(record: Record) -> Row:
    value = record.value
    if not isinstance(value, dict) or not {"ids", "num_prompt", "key", "origin"} <= value.keys():
        raise UserError(f"{record.origin}: a regenerated row has ids, num_prompt, key, origin. Run train/regenerate.py")
    return Row(
        key=value["key"],
        origin=value["origin"],
        text=value.get("text"),
        ids=tuple(value["ids"]),
        num_prompt=value["num_prompt"],
        spans=tuple(value.get("spans") or ()),
    )
