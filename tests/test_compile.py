"""Compiling CUDA sources at first use: which compiler, what is kept, and what is said when it cannot be done."""

import logging
import os
import shutil
import stat
from pathlib import Path

import pytest
import torch
from compilers import needs_nvcc

from euryale.errors import UserError
from euryale.kernels.cuda import compile as compile_module
from euryale.kernels.cuda.compile import FOLDER, Compiler, cubin, find_compiler, nvrtc_compiler


class Counted:
    """A compiler that counts its calls."""

    def __init__(self, name: str = "nvcc 13.0") -> None:
        self.calls = 0
        self.compiler = Compiler(name, self.compile)

    def compile(self, source: Path, capability: int) -> bytes:
        self.calls += 1
        return f"{source.stem} for {capability}".encode()


def test_a_kernel_is_compiled_once_for_each_card_and_compiler(tmp_path: Path) -> None:
    one, other = Counted(), Counted("NVRTC 13.0")
    for _ in range(2):
        assert cubin("nf4_linear", 90, one.compiler, tmp_path) == b"nf4_linear for 90"
        assert cubin("nf4_linear", 80, one.compiler, tmp_path) == b"nf4_linear for 80"
        assert cubin("nf4_linear", 90, other.compiler, tmp_path) == b"nf4_linear for 90"
    assert (one.calls, other.calls) == (2, 1) and len(list(tmp_path.iterdir())) == 3


def test_other_sources_are_compiled_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = tmp_path / "sources"
    shutil.copytree(FOLDER, sources)
    monkeypatch.setattr(compile_module, "FOLDER", sources)
    counted = Counted()
    cubin("nf4_linear", 90, counted.compiler, tmp_path / "kept")
    for name in ("nf4_linear.cu", "common.cuh"):
        (sources / name).write_text((sources / name).read_text() + "\n// changed\n")
        cubin("nf4_linear", 90, counted.compiler, tmp_path / "kept")
    assert counted.calls == 3


def test_a_folder_that_cannot_be_written_costs_the_cache_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    counted = Counted()
    with caplog.at_level(logging.WARNING):
        assert cubin("nf4_linear", 90, counted.compiler, tmp_path / "file") == b"nf4_linear for 90"
    assert "cannot be kept" in caplog.text and "EURYALE_CACHE" in caplog.text


def test_a_compiler_that_fails_keeps_nothing(tmp_path: Path) -> None:
    def refuse(source: Path, capability: int) -> bytes:
        raise UserError("refused")

    with pytest.raises(UserError, match="refused"):
        cubin("nf4_linear", 90, Compiler("nvcc 13.0", refuse), tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def fake_nvcc(folder: Path, text: str) -> None:
    """A bin/nvcc that prints `text`."""
    (folder / "bin").mkdir()
    path = folder / "bin" / "nvcc"
    path.write_text(f"#!/bin/sh\necho '{text}'\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch brings NVRTC, which stands in for nvcc")
@pytest.mark.parametrize(
    ("told", "why"),
    [
        (None, "nvcc was not found in .*/bin"),
        ("release 11.2, V11.2.1", "is of version 11.2, and 11.8 or newer is needed"),
        ("good day", "is of version unknown"),
    ],
)
def test_a_missing_or_unfit_nvcc_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str | None, why: str
) -> None:
    if told is not None:
        fake_nvcc(tmp_path, told)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(UserError, match=f"(?s)backend=cuda needs a compiler; .*{why}.*no NVRTC.* use backend=triton"):
        cubin("nf4_linear", 90, folder=tmp_path / "kept")


@needs_nvcc
def test_nvcc_refuses_a_broken_source_with_its_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_HOME", raising=False)
    (tmp_path / "broken.cu").write_text("__global__ void f() { undeclared; }")
    compiler = find_compiler()
    assert isinstance(compiler, Compiler) and compiler.name.startswith("nvcc")
    with pytest.raises(UserError, match='(?s)refuses broken.cu.*"undeclared" is undefined'):
        compiler.compile(tmp_path / "broken.cu", 80)


def test_nvrtc_compiles_the_same_sources(tmp_path: Path) -> None:
    """EURYALE_TEST_NVRTC names the library where torch has no CUDA; the package nvidia-cuda-nvrtc holds it."""
    version = "" if torch.version.cuda is None else torch.version.cuda.split(".")[0]
    library = os.environ.get("EURYALE_TEST_NVRTC", f"libnvrtc.so.{version}")
    compiler = nvrtc_compiler(library)
    if isinstance(compiler, str):
        pytest.skip(f"NVRTC is not installed: {compiler}")
    for source in ("tree_attention", "nf4_linear"):
        assert cubin(source, 90, compiler, tmp_path).startswith(b"\x7fELF")
    (tmp_path / "broken.cu").write_text("__global__ void f() { undeclared; }")
    with pytest.raises(UserError, match='(?s)NVRTC refuses broken.cu.*"undeclared" is undefined'):
        compiler.compile(tmp_path / "broken.cu", 80)
