"""What several test files share: a tiny random base on disk; and in which order files run."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

import pytest

if TYPE_CHECKING:
    from euryale.base.base import Base

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test asks the network

# Files that take longest, the longest first: begun first, none of them is what a process works on alone in the end.
LONG_FILES = [
    "test_sweeps", "test_kernels_interpreted", "test_config", "test_kernels_compiled", "test_processes",
    "test_hub_recipes", "test_pipeline", "test_page", "test_measure_training", "test_exactness", "test_medusa2",
    "test_accept_rules", "test_device_step", "test_page_served", "test_server_soak", "test_scheduler", "test_trainer",
    "test_world_families", "test_on_a_gpu", "test_report", "test_kernels_cuda", "test_hub_source",
]  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


def pytest_collection_finish() -> None:
    """Takes what imports have made out of the garbage collector's sight, and lets it look less often: walking objects
    again and again was a quarter of the time of many tests."""
    import torch  # here: the process that only hands out tests to others need not wait for it

    # Tests are small and machines are shared: threads that wait for each other cost more than they bring.
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000)  # objects made between two looks; 700 by default


@pytest.fixture(scope="module", autouse=True)
def no_wait_for_disks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Outside of test_files.py, files are written and not flushed to the disk: only a power cut would show it."""
    is_real = request.path.stem == "test_files"
    with nullcontext() if is_real else patch.object(os, "fsync", lambda handle: None):
        yield


@pytest.fixture
def no_compiled_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bases are read as on a machine without a C++ compiler."""
    monkeypatch.setattr("euryale.base.choose_forward._compiled", lambda model, sample: None)


@pytest.fixture(scope="session")
def tiny_llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random Llama; vocabulary 99, 256 positions."""
    from tiny_llama import save_tiny_llama  # here, for the same reason

    return save_tiny_llama(tmp_path_factory.mktemp("bases") / "tiny-llama")


@pytest.fixture(scope="session")
def tiny_base(tiny_llama_folder: Path) -> Base:
    """The same, loaded in float32 on the CPU; leave it as it is."""
    from euryale.base.base import load_base  # here, for the same reason
    from euryale.base.config import BaseConfig

    return load_base(BaseConfig(path=str(tiny_llama_folder), dtype="float32", device="cpu"))


@pytest.fixture(scope="session")
def material() -> Path:
    """Models, texts and prompts of others, next to the checkout; a plain clone does not have them."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "material"
    if not folder.is_dir():
        pytest.skip(f"no real material at {folder}")
    return folder
