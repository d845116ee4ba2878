"""The most memory in use is counted, also when it was given back, and anew where the system can."""

import platform
import sys
from pathlib import Path

import pytest
import torch

from euryale.base.base import load_base
from euryale.base.config import BaseConfig
from euryale.errors import UserError
from euryale.system import memory
from euryale.system.memory import begin_peak, is_out_of_memory, keep_freed_memory, let_go, peak, resident

CPU = torch.device("cpu")
SIZE = 200_000_000  # bytes


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts anew")
def test_memory_that_was_given_back_counts_until_the_next_beginning() -> None:
    if not memory._CLEAR.exists():
        pytest.skip("this system does not let a process count anew")
    begin_peak(CPU)
    before = peak(CPU).host_bytes
    block = bytearray(SIZE)  # filled with zeros, page by page
    del block
    assert peak(CPU).host_bytes > before + 0.9 * SIZE
    begin_peak(CPU)
    assert peak(CPU).host_bytes < before + 0.5 * SIZE
    assert peak(CPU).device_bytes is None


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is asked to keep and to give back")
def test_what_is_let_go_leaves_the_process() -> None:
    """glibc keeps freed blocks below one that is in use, as those of the text stage were kept through training."""
    keep_freed_memory()
    blocks = [torch.ones(2**18) for _ in range(200)]  # 1 MB each, below the threshold of mmap
    last = blocks[-1]
    full = resident()
    del blocks
    let_go(CPU)
    assert resident() < full - 150_000_000
    assert last.sum() == 2**18


def test_where_nothing_can_be_counted_anew_the_highest_of_the_process_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_CLEAR", tmp_path / "missing" / "clear_refs")
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "status")
    begin_peak(CPU)
    block = bytearray(SIZE)
    del block
    begin_peak(CPU)
    assert SIZE < peak(CPU).host_bytes < 1e12


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), True),
        (RuntimeError("shapes do not fit"), False),
        (OSError("offline"), False),
    ],
)
def test_out_of_memory_has_its_own_name(error: Exception, is_memory: bool) -> None:
    assert is_out_of_memory(error) == is_memory


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory.\nmore")])
def test_a_base_that_does_not_fit_is_not_told_as_one_that_is_offline(
    tiny_llama_folder: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **more: object) -> None:
        raise error

    monkeypatch.setattr("euryale.base.base.AutoModelForCausalLM.from_pretrained", refuse)
    with pytest.raises(UserError, match="does not fit into the memory of cpu.*base.quantization=nf4") as caught:
        load_base(BaseConfig(path=str(tiny_llama_folder), device="cpu"))
    assert "offline" not in str(caught.value)


def test_freed_memory_is_kept_where_the_user_did_not_say_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"):
        monkeypatch.delenv(name, raising=False)
    assert memory.keep_freed_memory.__wrapped__() == (platform.libc_ver()[0] == "glibc")
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000000")
    assert not memory.keep_freed_memory.__wrapped__()
