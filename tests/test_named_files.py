"""Files that data.files names, and what a folder holds beside them."""

import os
from pathlib import Path

import pytest

from euryale.data.config import DataConfig
from euryale.data.named_files import find_files
from euryale.data.prompt_files import read_prompts
from euryale.data.sources import notices
from euryale.errors import UserError


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    return folder


def test_a_folder_says_in_one_line_which_kinds_were_left_out(tmp_path: Path) -> None:
    fill(tmp_path, "a.txt", "b.PDF", "c.pdf", "d.csv.gz", "Makefile", "sub/e.jsonl", ".git/config")
    named = find_files([str(tmp_path)])
    assert [path.name for path in named.paths] == ["a.txt", "e.jsonl"]
    [notice] = named.notices
    assert notice.startswith(f"data.files={tmp_path}: 4 files were left out (")
    assert all(kind in notice for kind in ("1 .PDF", "1 .pdf", "1 .csv.gz", "1 without a suffix", "Read are .txt"))


def test_empty_files_and_links_in_a_folder_are_left_out(tmp_path: Path) -> None:
    """A package of Python has an empty __init__.py, which is no reason to refuse the others."""
    fill(tmp_path / "package", "module.py")
    fill(tmp_path / "elsewhere", "other.py")
    (tmp_path / "package" / "__init__.py").touch()
    (tmp_path / "package" / "gone.txt").symlink_to(tmp_path / "gone.txt")
    (tmp_path / "package" / "linked").symlink_to(tmp_path / "elsewhere")
    for name in ("package", "package/*"):
        named = find_files([str(tmp_path / name)])
        assert [path.name for path in named.paths] == ["module.py"]
        assert "1 empty" in named.notices[0] and ("1 link to a folder" in named.notices[0]) == (name == "package")
    assert "1 broken link" in find_files([str(tmp_path / "package")]).notices[0]


def test_many_kinds_are_counted(tmp_path: Path) -> None:
    fill(tmp_path, "a.txt", *(f"x.{letter}" for letter in "abcdefghij"))
    assert "4 other kinds" in find_files([str(tmp_path)]).notices[0]


def test_nothing_is_said_of_a_folder_that_is_read_whole(tmp_path: Path) -> None:
    assert find_files([str(fill(tmp_path, "a.txt", "b.jsonl.gz"))]).notices == []


def test_the_parts_of_a_mix_are_looked_at_too(tmp_path: Path) -> None:
    fill(tmp_path, "a.txt", "b.pdf")
    part = {"kind": "files", "files": str(tmp_path), "weight": 1.0}
    assert len(notices(DataConfig(kind="mix", mix=[part, {"kind": "stdlib", "weight": 1.0}]))) == 1
    assert notices(DataConfig(kind="stdlib")) == []


def test_a_pipe_is_refused_for_what_it_is(tmp_path: Path) -> None:
    """As a shell's <(...) gives one: it was called missing."""
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(UserError, match="pipe.txt must be a file or folder; got a pipe or a device"):
        find_files([str(tmp_path / "pipe.txt")])
    with pytest.raises(UserError, match="pipe.txt must be a file; got a folder, a pipe or a device"):
        read_prompts(tmp_path / "pipe.txt")
