"""Tests that run in a process of their own, with TRITON_INTERPRET=1: see tests/test_kernels_interpreted.py."""

from collections.abc import Iterator

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def scratch_is_nan() -> Iterator[None]:
    """torch then fills new memory with NaN, so that what is read without having been written shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.zeros(1).new_empty(2).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
