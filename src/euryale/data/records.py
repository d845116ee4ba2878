"""The records in a file.

A record reader starts after any record, so that a cursor is (file, number of records done). A record that cannot
be used is given as a `UserError` value instead of being raised: reading goes on after it.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import tokenize
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import pyarrow
import pyarrow.parquet

from euryale.data.documents import PIECES, PROBE_CHARS, find_rule, lines_of, split_documents
from euryale.data.named_files import suffix
from euryale.errors import UserError

_WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # UTF-32 of most machines begins as the first


class Record(NamedTuple):
    """`position` is the cursor after it; `value` is a JSON object or table row, a text, or why it is unusable."""

    position: int
    origin: str
    value: object | str | UserError


def read_records(path: Path, start: int = 0, separator: str = "auto") -> Iterator[Record]:
    """The records after the first `start`. A file that cannot be read at all raises UserError, at the bad place."""
    reader = {".jsonl": _json_lines, ".json": _json_file, ".parquet": _parquet_rows}.get(suffix(path))
    try:
        if reader is not None:
            yield from reader(path, start)
        elif suffix(path) == ".txt":
            yield from _documents(path, start, separator)
        elif separator == PIECES:
            for number, piece in enumerate(split_documents(lines_of(_source_text(path)), PIECES), start=1):
                if number > start:
                    yield Record(number, f"{path}:{piece.line}", piece.text)
        elif start == 0:
            yield Record(1, str(path), _source_text(path))
    except (OSError, EOFError, zlib.error, pyarrow.ArrowException) as error:
        reason = str(error).rstrip(".")
        raise UserError(f"{path} cannot be read, as if it were damaged or cut short: {reason}.") from error


def _open_binary(path: Path) -> gzip.GzipFile | io.BufferedReader:
    return gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb")


def _open_text(path: Path) -> io.TextIOWrapper:
    file = _open_binary(path)
    if file.peek(2)[:2] in _WIDE:
        file.close()
        raise UserError(f"{path} is in UTF-16 or UTF-32, which is not read. UTF-8 is.")
    # Undecodable bytes become lone surrogates, which rows.py refuses row by row, naming the place.
    return io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape")


def _json_lines(path: Path, start: int) -> Iterator[Record]:
    with _open_text(path) as file:
        for number, line in enumerate(islice(file, start, None), start=start + 1):
            if line.strip():
                yield Record(number, f"{path}:{number}", _parse(line, f"{path}:{number}"))


def _parse(line: str, where: str) -> object:
    try:
        return json.loads(line, object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError) as error:
        return UserError(f"{where}: not valid JSON ({error}).")


def _without_doubles(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object of JSON. Raises ValueError for a name that stands twice: which of the two is meant is not known."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {double!r} stands twice in one object")
    return found


def _json_file(path: Path, start: int) -> Iterator[Record]:
    """A .json file is one list of records, or JSON lines under another name."""
    with _open_text(path) as file:
        text = file.read()
    if not text.lstrip().startswith("["):
        yield from _json_lines(path, start)
        return
    try:
        items = json.loads(text, object_pairs_hook=_without_doubles)
    except json.JSONDecodeError as error:
        where = f"{path}:{error.lineno}"
        raise UserError(f"{where}: not valid JSON ({error.msg}, column {error.colno}).") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error}).") from error
    for number, item in enumerate(items[start:], start=start + 1):
        yield Record(number, f"{path}: item {number}", item)


def _parquet_rows(path: Path, start: int) -> Iterator[Record]:
    with pyarrow.parquet.ParquetFile(path) as file:
        names = file.schema_arrow.names
        if doubles := sorted({name for name in names if names.count(name) > 1}):
            raise UserError(f"{path}: the column {doubles[0]} stands twice in this table. Rename one of them")
        # Times hold no text, and not every one of them is a time that Python knows.
        columns = [field.name for field in file.schema_arrow if not pyarrow.types.is_temporal(field.type)]
        position = 0
        for group in range(file.num_row_groups):
            num_rows = file.metadata.row_group(group).num_rows
            if position + num_rows <= start:
                position += num_rows
                continue
            for batch in file.iter_batches(batch_size=256, row_groups=[group], columns=columns):
                for record in _rows_of(batch, path, position):
                    position += 1
                    if position > start:
                        yield Record(position, f"{path}: row {position}", record)


def _rows_of(batch: pyarrow.RecordBatch, path: Path, position: int) -> list[object | UserError]:
    try:
        return list(batch.to_pylist())
    except (ValueError, OverflowError):  # bytes that are no UTF-8 in one row, a time that Python does not know
        return [_row_of(batch.slice(row, 1), f"{path}: row {position + row + 1}") for row in range(batch.num_rows)]


def _row_of(batch: pyarrow.RecordBatch, origin: str) -> object | UserError:
    try:
        [record] = batch.to_pylist()
    except (ValueError, OverflowError) as error:
        return UserError(f"{origin}: cannot be read ({error}).")
    return record


def _documents(path: Path, start: int, separator: str) -> Iterator[Record]:
    with _open_text(path) as file:
        rule = find_rule(separator, file.read(PROBE_CHARS) if separator == "auto" else "")
    with _open_text(path) as file:
        for number, document in enumerate(split_documents(file, rule), start=1):
            if number > start:
                yield Record(number, f"{path}:{document.line}", document.text)


def _source_text(path: Path) -> str:
    """A whole .py or .md file. Python names its encoding in the file; a wrong one is read as Latin-1, which always
    can be: a few odd characters in a comment do not make a module worthless."""
    with _open_binary(path) as file:
        data = file.read()
    try:
        encoding = tokenize.detect_encoding(io.BytesIO(data).readline)[0] if suffix(path) == ".py" else "utf-8-sig"
        text = data.decode(encoding)
    except (SyntaxError, UnicodeDecodeError, LookupError):
        text = data.decode("latin-1")
    return text.replace("\r\n", "\n")
