"""The C++ of the CPU is compiled once and kept whole; what keeps it from being compiled is one message."""

import logging
import os
from pathlib import Path

import pytest
from compilers import needs_compiler

from euryale.errors import UserError
from euryale.kernels.compiled import cache_folder, keep
from euryale.kernels.cpu import compile as compile_module
from euryale.kernels.cpu.compile import FORWARD, NOISE, find_compiler, library_for, load_library, why_one_thread

SMALL = """#include <vector>
extern "C" { int euryale_read() { return 7; }
void euryale_product() {}
void euryale_draft() {}
void euryale_walk() {}
#ifdef _OPENMP
int euryale_has_threads() { return 1; }
#else
int euryale_has_threads() { return 0; }
#endif
}
"""
WITHOUT_OPENMP = """case " $* " in
*" -fopenmp "*) echo "clang: error: no OpenMP here" >&2; exit 1;;
esac
exec %s "$@"
"""


@pytest.fixture(autouse=True)
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library that is compiled in a moment, in a folder with a space in its name."""
    monkeypatch.delenv("CXX", raising=False)
    folder = tmp_path / "the sources"
    folder.mkdir()
    for name in FORWARD.sources:
        (folder / name).write_text(SMALL if name == "llama.cpp" else "")
    monkeypatch.setattr(compile_module, "FOLDER", folder)
    return folder


def compiler_that(tmp_path: Path, does: str) -> str:
    path = tmp_path / "a compiler"
    path.write_text(f"#!/bin/sh\n{does}\n")
    path.chmod(0o755)
    return f"'{path}'"


def only_file(folder: Path) -> Path:
    (file,) = folder.iterdir()
    return file


@needs_compiler
def test_a_library_is_compiled_once_for_each_target_and_each_cxx(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "kept"
    for _ in range(2):
        assert library_for((), kept).euryale_read
    first = only_file(kept).stat().st_mtime_ns
    library_for((), kept)
    assert only_file(kept).stat().st_mtime_ns == first
    library_for(("-O1",), kept)
    assert len(list(kept.iterdir())) == 2
    compiler = find_compiler()[0]
    for named in (compiler, f"{compiler} -DNAMED"):
        monkeypatch.setenv("CXX", named)
        library_for((), kept)
    assert len(list(kept.iterdir())) == 4


@needs_compiler
def test_a_kept_library_needs_no_compiler_and_asks_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, asked = tmp_path / "kept", tmp_path / "asked"
    library_for((), kept)
    monkeypatch.setenv("CXX", compiler_that(tmp_path, f"touch '{asked}'\nexec {find_compiler()[0]} \"$@\""))
    library_for((), kept)
    asked.unlink()
    assert library_for((), kept).euryale_read
    assert not asked.exists()
    (tmp_path / "a compiler").unlink()
    assert library_for((), kept).euryale_read
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert library_for((), kept).euryale_read


@needs_compiler
@pytest.mark.parametrize("other", ["processor", "sources", "C library", "CXX"])
def test_a_library_of_another_machine_or_source_is_not_taken(
    other: str, tmp_path: Path, sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "kept"
    library_for((), kept)
    match other:
        case "processor":
            monkeypatch.setattr(compile_module, "_processor", lambda: "flags: fpu vme")
        case "sources":
            (sources / "product.h").write_text("// new\n")
        case "C library":
            monkeypatch.setattr(compile_module.platform, "libc_ver", lambda: ("glibc", "2.17"))
        case "CXX":
            monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"need a C\+\+ compiler"):
        library_for((), kept)


@needs_compiler
def test_what_is_compiled_apart_is_kept_apart(tmp_path: Path, sources: Path) -> None:
    kept = tmp_path / "kept"
    for change in ("", "// new"):
        (sources / "noise.cpp").write_text(f'extern "C" void euryale_noise() {{}}\n{change}')
        assert library_for((), kept, NOISE).euryale_noise and library_for((), kept).euryale_read
    assert sorted(file.name.partition("-")[0] for file in kept.iterdir()) == ["llama", "noise", "noise"]


@needs_compiler
def test_a_compiler_without_openmp_makes_a_library_of_one_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compile_module, "cache_folder", lambda: tmp_path / "kept")
    monkeypatch.setenv("CXX", compiler_that(tmp_path, WITHOUT_OPENMP % find_compiler()[0]))
    load_library.cache_clear()
    with caplog.at_level(logging.INFO):
        reason = why_one_thread()
    assert "compiled without OpenMP, because with it: " in caplog.text and "no OpenMP here" in caplog.text
    assert reason and reason.endswith(f"remove {only_file(tmp_path / 'kept')}")
    monkeypatch.delenv("CXX")
    load_library.cache_clear()
    assert why_one_thread() is None
    load_library.cache_clear()


@needs_compiler
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_file_that_was_cut_short_is_compiled_anew(
    tmp_path: Path, share: float, caplog: pytest.LogCaptureFixture
) -> None:
    """Loading it could end the process: what is mapped beyond the end of a file is a bus error."""
    kept = tmp_path / "kept"
    library_for((), kept)
    file = only_file(kept)
    whole = file.read_bytes()
    file.unlink()  # its pages are in use
    file.write_bytes(whole[: int(len(whole) * share)])
    with caplog.at_level(logging.WARNING):
        assert library_for((), kept).euryale_read
    assert "compiled anew (it was cut short)" in caplog.text
    assert len(only_file(kept).read_bytes()) == len(whole)


@pytest.mark.parametrize(
    ("named", "told"),
    [
        ("no-such-compiler", "CXX=no-such-compiler was not found"),
        ("'g++", "CXX must name a C\\+\\+ compiler; got 'g\\+\\+"),
        ("/", "CXX=/ was not found"),
    ],
)
def test_a_cxx_that_names_nothing_is_named(named: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", named)
    with pytest.raises(UserError, match=told):
        find_compiler()


def test_a_machine_without_a_compiler_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"need a C\+\+ compiler; none of g\+\+, c\+\+, clang\+\+ was found\. Install"):
        find_compiler()


@pytest.mark.parametrize(
    ("does", "told"),
    [
        ("exit 1", "refuses .*llama.cpp, .*: it said nothing. Name another"),
        ("echo 'x: Error: no such instruction: vpdpbusd' >&2; exit 1", "no such instruction: vpdpbusd. Name another"),
        ("exit 0", "nothing that works came of .*: .*llama.so.*Name another"),
        ('while [ "$1" != -o ]; do shift || exit; done; echo text > "$2"', "nothing that works came of .*Name another"),
    ],
)
def test_a_compiler_that_fails_is_one_message_and_keeps_nothing(
    tmp_path: Path, does: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", compiler_that(tmp_path, does))
    with pytest.raises(UserError, match=told):
        library_for((), tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_a_compiler_that_cannot_be_started_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "compiler"
    path.write_bytes(b"\x7fELF of another machine")
    path.chmod(0o755)
    monkeypatch.setenv("CXX", str(path))
    with pytest.raises(UserError, match="nothing that works came of .*Exec format error.*Name another"):
        library_for((), tmp_path / "kept")


@needs_compiler
def test_a_library_that_lacks_what_it_links_to_is_not_kept(tmp_path: Path, sources: Path) -> None:
    """As a C compiler leaves out the library of C++."""
    (sources / "llama.cpp").write_text("extern void nowhere();\nvoid call() { nowhere(); }\n")
    with pytest.raises(UserError, match="undefined symbol.*Name another C"):
        library_for(("-Wl,-z,now",), tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


@needs_compiler
def test_a_full_disk_costs_the_cache_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with caplog.at_level(logging.WARNING):
        assert library_for((), tmp_path / "kept").euryale_read
    assert "cannot be kept (No space left on device)" in caplog.text
    assert not list((tmp_path / "kept").iterdir())


def test_two_that_compile_at_once_both_end_with_a_whole_file(tmp_path: Path) -> None:
    for code in (b"one", b"two"):
        keep(tmp_path / "kept" / "llama.so", code)
    kept = only_file(tmp_path / "kept")
    assert kept.read_bytes() == b"two"
    (tmp_path / "new").touch()
    assert kept.stat().st_mode == (tmp_path / "new").stat().st_mode, "a cache may be shared between users"


def test_a_user_without_a_home_is_asked_for_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("EURYALE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(UserError, match="EURYALE_CACHE must name a folder"):
        cache_folder()
