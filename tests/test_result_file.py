"""A result that could not be written, or would overwrite something else, is refused before it is measured."""

import json
from pathlib import Path

import pytest

from euryale.errors import UserError
from euryale.report.result_file import check_result, write_result

RESULT = {"contenders": {"ar": {"tokens_per_s": 1.0}}, "hardware": {}, "provenance": {}}


def test_an_earlier_result_may_be_written_over_and_lines_are_added(tmp_path: Path) -> None:
    check_result(None)
    for name in ("a.json", "a.jsonl", "deep/new.json"):
        for _ in range(2):
            check_result(str(tmp_path / name))
            write_result(tmp_path / name, RESULT)
    assert json.loads((tmp_path / "a.json").read_text()) == RESULT
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("heads.json", json.dumps({"heads": {}, "provenance": {}})),
        ("report.json", json.dumps(RESULT | {"training": {}})),
        ("notes.md", "mine"),
        ("list.json", "[1]"),
    ],
)
def test_a_file_that_holds_something_else_is_not_written_over(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match="output must be a new file or an earlier result; got"):
        check_result(str(tmp_path / name))
    assert (tmp_path / name).read_text() == content


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="output must be a file; got the folder"):
        check_result(str(tmp_path))
