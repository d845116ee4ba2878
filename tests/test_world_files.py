"""Files of data as they come from elsewhere: read as they are meant, or refused in one line.

A case names where its fault was met first; "own" is ours.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from euryale.base.base import load_base
from euryale.base.config import BaseConfig
from euryale.data.file_source import file_row
from euryale.data.named_files import find_files
from euryale.data.prompt_files import read_prompts
from euryale.data.records import read_records
from euryale.errors import UserError
from euryale.heads.find_checkpoint import find_checkpoint
from euryale.system.paths import user_path

LINES = '{"text": "one"}\n{"text": "two"}\n'


def texts(path: Path) -> list[str | None]:
    rows = []
    for record in read_records(path):
        if isinstance(record.value, UserError):
            raise record.value
        rows.append(file_row(record, None).text)
    return rows


@pytest.mark.parametrize(
    "content",
    [LINES.encode("utf-8-sig"), LINES.replace("\n", "\r\n").encode(), LINES.replace("\n", "\r").encode(),
     LINES.replace("\n", "\n\n").encode(), LINES.rstrip().encode()],
    ids=["a byte order mark", "CRLF", "CR", "empty lines", "no last newline"],
)  # fmt: skip
def test_lines_end_and_begin_in_any_way(content: bytes, tmp_path: Path) -> None:  # own
    (tmp_path / "a.jsonl").write_bytes(content)
    assert texts(tmp_path / "a.jsonl") == ["one", "two"]


BAD_JSON = {
    "UTF-16 (datasets#5969)": (LINES.encode("utf-16"), "a.jsonl is in UTF-16 or UTF-32"),
    "UTF-16 of the other end": (b"\xfe\xff" + LINES.encode("utf-16-be"), "a.jsonl is in UTF-16 or UTF-32"),
    "UTF-32": (LINES.encode("utf-32"), "a.jsonl is in UTF-16 or UTF-32"),
    "Latin-1 (datasets#6641)": ('{"text": "caf\u00e9"}'.encode("latin-1"), "a.jsonl:1: the text must be valid Unicode"),
    "a key twice": (b'{"text": "a", "text": "b"}', "a.jsonl:1: .*the key 'text' stands twice"),
    "a role twice": (b'{"messages": [{"role": "user", "role": "assistant", "content": "b"}]}', "'role' stands twice"),
    "100,000 brackets": (b"[" * 100_000, "a.jsonl:1: not valid JSON .maximum recursion"),
    "a number of 5,000 digits": (b'{"text": "a", "n": ' + b"1" * 5000 + b"}", "a.jsonl:1: not valid JSON"),
    "zeros of a disk": (b'{"text": "a"}\n\0\0\0\0\n', "a.jsonl:2: not valid JSON"),
    "null": (b"null", "a.jsonl:1: a row must be a JSON object; got NoneType"),
    "a turn that is null": (b'{"messages": [null]}', "a.jsonl:1: messages: turn 1 must be an object"),
    "a content that is null": (b'{"messages": [{"role": "user", "content": null}]}', "turn 1 must have a text"),
    "a text that is null": (b'{"text": null}', "a.jsonl:1: text must be text; got None"),
}


@pytest.mark.parametrize("name", BAD_JSON)
def test_json_that_cannot_be_meant_is_refused_with_its_line(name: str, tmp_path: Path) -> None:
    content, words = BAD_JSON[name]
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=words):
        texts(tmp_path / "a.jsonl")


def test_a_list_in_json_is_read_with_the_same_care(tmp_path: Path) -> None:
    for content, words in ((b"[" * 100_000, "not valid JSON"), (b'[{"text": "a", "text": "b"}]', "stands twice")):
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(UserError, match=words):
            texts(tmp_path / "a.json")


def table(tmp_path: Path, **columns: pyarrow.Array) -> Path:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def of_type(value: object, kind: pyarrow.DataType) -> pyarrow.Array:
    return pyarrow.array([value], kind)


OTHER_COLUMNS = {
    "a time beyond years (awkward#4220)": of_type(2**62, pyarrow.timestamp("us")),
    "nanoseconds (aws-sdk-pandas#296)": of_type(1, pyarrow.timestamp("ns")),
    "a time zone that nobody knows": of_type(1, pyarrow.timestamp("us", tz="No/Such")),
    "a day beyond years": of_type(2**30, pyarrow.date32()),
    "a duration": of_type(2**60, pyarrow.duration("us")),
    "a decimal": of_type(1, pyarrow.decimal128(5)),
    "bytes": of_type(b"\xff", pyarrow.binary()),
    "nothing": of_type(None, pyarrow.null()),
    "lists of numbers": of_type([1.0], pyarrow.list_(pyarrow.float16())),
}


@pytest.mark.parametrize("name", OTHER_COLUMNS)
def test_columns_of_any_type_may_stand_beside_the_text(name: str, tmp_path: Path) -> None:
    assert texts(table(tmp_path, text=pyarrow.array(["one"]), other=OTHER_COLUMNS[name])) == ["one"]


@pytest.mark.parametrize("kind", [pyarrow.large_string(), pyarrow.string_view(),
                                  pyarrow.dictionary(pyarrow.int8(), pyarrow.string())], ids=str)  # fmt: skip
def test_a_text_may_be_stored_in_any_way(kind: pyarrow.DataType, tmp_path: Path) -> None:
    assert texts(table(tmp_path, text=pyarrow.array(["one", "two"]).cast(kind))) == ["one", "two"]


def test_a_text_that_is_no_unicode_is_one_bad_row(tmp_path: Path) -> None:
    path = table(tmp_path, text=pyarrow.array([b"one", b"\xff", b"two"]).view(pyarrow.string()))
    records = list(read_records(path))
    assert [record.position for record in records] == [1, 2, 3]
    assert isinstance(records[1].value, UserError) and "row 2: cannot be read" in str(records[1].value)
    assert [file_row(record, None).text for record in (records[0], records[2])] == ["one", "two"]


def test_a_column_that_stands_twice_is_refused(tmp_path: Path) -> None:
    columns = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["text", "text"])
    pyarrow.parquet.write_table(columns, tmp_path / "a.parquet")
    with pytest.raises(UserError, match="the column text stands twice"):
        texts(tmp_path / "a.parquet")


PLACES = ["a" * 5000 + ".jsonl", "~no_such_user/a.jsonl", "a\0b.jsonl", "\n", "[.jsonl", "a=b,c.jsonl"]


@pytest.mark.parametrize("name", PLACES, ids=lambda name: repr(name)[:30])
def test_a_path_that_cannot_be_is_refused_wherever_it_is_given(name: str, tmp_path: Path) -> None:  # own
    """Too long a name was an OSError, and ~ of an unknown user a RuntimeError."""
    calls: list[Callable[[], object]] = [
        lambda: find_files([name]).paths,
        lambda: read_prompts(name),
        lambda: find_checkpoint(name, tmp_path),
        lambda: load_base(BaseConfig(path=f"./{name}" if name[0] != "~" else name, device="cpu")),
    ]
    for call in calls:
        with pytest.raises(UserError):
            call()


def test_links_that_lead_to_themselves_are_no_files(tmp_path: Path) -> None:  # own
    (tmp_path / "a.jsonl").symlink_to(tmp_path / "a.jsonl")
    with pytest.raises(UserError):
        find_files([str(tmp_path / "a.jsonl")])
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "again").symlink_to(tmp_path / "folder")
    (tmp_path / "folder" / "b.jsonl").write_text(LINES)
    assert find_files([str(tmp_path / "folder")]).paths == [tmp_path / "folder" / "b.jsonl"]


def test_a_folder_that_nobody_may_enter_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # own
    def closed(*given: object, **settings: object) -> os.stat_result:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "stat", closed)
    with pytest.raises(UserError, match=r"data.files=/secret/a.jsonl cannot be looked for \(Permission denied\)"):
        user_path("/secret/a.jsonl", "data.files")
