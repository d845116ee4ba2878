"""What several test files share: a tiny random base on disk."""

import gc
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test asks the network

from pathlib import Path

import pytest
import torch
from tiny_llama import save_tiny_llama

from euryale.base.base import Base, load_base
from euryale.base.config import BaseConfig

# Tests are small and machines are shared: threads that wait for each other cost more than they bring.
torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """Takes what imports have made out of the garbage collector's sight, and lets it look less often: walking objects
    again and again was a quarter of the time of many tests."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000)  # objects made between two looks; 700 by default


@pytest.fixture(scope="session")
def tiny_llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random Llama; vocabulary 99, 256 positions."""
    return save_tiny_llama(tmp_path_factory.mktemp("bases") / "tiny-llama")


@pytest.fixture(scope="session")
def tiny_base(tiny_llama_folder: Path) -> Base:
    """The same, loaded in float32 on the CPU; leave it as it is."""
    return load_base(BaseConfig(path=str(tiny_llama_folder), dtype="float32", device="cpu"))


@pytest.fixture(scope="session")
def material() -> Path:
    """Models, texts and prompts of others, next to the checkout; a plain clone does not have them."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "material"
    if not folder.is_dir():
        pytest.skip(f"no real material at {folder}")
    return folder
