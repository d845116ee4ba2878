"""Is the most memory in use counted, also when it was given back, and anew where the system can?"""

import sys
from pathlib import Path

import pytest
import torch

from euryale.system import memory
from euryale.system.memory import begin_peak, peak

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
