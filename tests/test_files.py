"""Files are whole after a write that fails, and the message says how they are."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from euryale.errors import UserError
from euryale.system.files import write_atomically

NAMES = ["a.txt", "b.txt", "z.json"]


def write_all(target: Path, content: str) -> None:
    with write_atomically(target, last="a.txt") as staged:
        staged.mkdir()
        for name in NAMES:
            (staged / name).write_text(content)


def failing(times: int) -> Callable[[object, object], None]:
    """os.replace that fails when it was called so many times."""
    plain, calls = os.replace, 0

    def replace(source: str | Path, target: str | Path) -> None:
        nonlocal calls
        calls += 1
        if calls > times:
            raise OSError(5, os.strerror(5), str(target))
        plain(source, target)

    return replace  # type: ignore[return-value]


@pytest.mark.parametrize("moved", [0, 1, 2])
def test_a_merge_that_stops_half_way_says_what_is_new(
    tmp_path: Path, moved: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It said that nothing had changed."""
    write_all(tmp_path, "old")
    monkeypatch.setattr(os, "replace", failing(moved))
    with pytest.raises(UserError, match="could not be saved") as caught:
        write_all(tmp_path, "new")
    order = ["b.txt", "z.json", "a.txt"]
    assert {name: (tmp_path / name).read_text() for name in order} == {
        name: "new" if order.index(name) < moved else "old" for name in order
    }
    assert ("unchanged" in str(caught.value)) == (moved == 0)
    assert f"{', '.join(order[:moved])} are new in it" in str(caught.value) or moved == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == NAMES


def test_a_folder_that_cannot_be_replaced_is_still_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "weights").write_text("old")
    plain = os.replace

    def refuse_new(source: str | Path, target: str | Path) -> None:
        if Path(target).name == "adapter" and ".old.tmp" not in Path(source).name:
            raise OSError(5, os.strerror(5))
        plain(source, target)

    def write() -> None:
        with write_atomically(tmp_path) as staged:
            (staged / "adapter").mkdir(parents=True)
            (staged / "adapter" / "weights").write_text("new")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", refuse_new)
        with pytest.raises(UserError, match="unchanged"):
            write()
    assert (tmp_path / "adapter" / "weights").read_text() == "old"
    write()
    assert (tmp_path / "adapter" / "weights").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.parametrize(
    "error",
    [FileNotFoundError(2, "No such file", "elsewhere/prompts.txt"), ConnectionError("the server is gone")],
    ids=["another file", "a connection"],
)
def test_errors_of_the_caller_pass_through(tmp_path: Path, error: OSError) -> None:
    """They were all told as a full disk."""
    with pytest.raises(type(error)) as caught, write_atomically(tmp_path / "a.txt") as staged:
        staged.write_text("half")
        raise error
    assert caught.value is error
    assert list(tmp_path.iterdir()) == []


def test_folders_made_for_what_was_not_written_are_removed(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(KeyError), write_atomically(tmp_path / "mine/new/newer/a.txt"):
        raise KeyError
    assert [path.name for path in tmp_path.rglob("*")] == ["mine"]
    with pytest.raises(KeyError), write_atomically(tmp_path / "mine/new/a.txt"):
        (tmp_path / "mine/new/theirs.txt").write_text("theirs")
        raise KeyError
    assert [path.name for path in (tmp_path / "mine/new").iterdir()] == ["theirs.txt"]


@pytest.mark.parametrize("filename", [None, "staged"])
def test_errors_of_writing_are_told_as_such(tmp_path: Path, filename: str | None) -> None:
    with (
        pytest.raises(UserError, match=r"a\.txt could not be saved.*unchanged"),
        write_atomically(tmp_path / "a.txt") as staged,
    ):
        raise OSError(28, "No space left on device", None if filename is None else str(staged / "part"))


def test_a_disk_that_a_copy_fills_is_told_as_such(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=r"a\.txt could not be saved.*unchanged"),
        write_atomically(tmp_path / "a.txt") as staged,
    ):
        raise OSError(28, "No space left on device", "what is copied", None, str(staged / "part"))


@pytest.mark.parametrize("mask, mode", [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_files_have_the_access_of_new_files_also_where_a_library_gave_them_less(
    mask: int, mode: int, tmp_path: Path
) -> None:
    before = os.umask(mask)
    try:
        with write_atomically(tmp_path / "heads") as staged:
            (staged / "resume").mkdir(parents=True)
            for name in ("heads.safetensors", "resume/tensors.safetensors"):
                save_file({"x": torch.zeros(1)}, staged / name)
        with write_atomically(tmp_path / "alone.safetensors") as staged:
            save_file({"x": torch.zeros(1)}, staged)
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path.stat().st_mode & 0o777 for path in files] == [mode] * 3
