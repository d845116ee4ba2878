"""What callers of Python make an engine of: a base, heads, a drafter, paths and counts, taken or refused by type.

All cases are ours: each was a traceback from deep inside.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from random_models import random_base
from tiny_llama import save_tiny_llama

from euryale.base.base import load_base
from euryale.base.config import BaseConfig
from euryale.decoding.engine import Engine
from euryale.errors import UserError

BASE = random_base()


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"base": "my-llama"}, "base must be a loaded Base; got 'my-llama'. Load one"),
        ({"base": None}, "base must be a loaded Base; got None"),
        ({"heads": "checkpoints/mine", "drafter": "heads"}, "heads must be loaded Heads; got 'checkpoints/mine'"),
        ({"heads": True}, "heads must be loaded Heads; got True"),
        ({"drafter": None}, "drafter must be a name or a DrafterConfig; got None. Without drafts: 'none'"),
        ({"drafter": 0}, "drafter must be a name or a DrafterConfig; got 0"),
        ({"drafter": b"none"}, "drafter must be a name or a DrafterConfig; got bytes"),
        ({"tree": 5}, "tree must be one of .*; got 5"),
        ({"accept": None}, "accept must be one of .*; got None"),
        ({"max_rows": None}, "max_rows must be a whole number; got None"),
        ({"max_rows": 1.5}, "max_rows must be a whole number; got 1.5"),
        ({"max_rows": "8"}, "max_rows must be a whole number; got '8'"),
        ({"max_rows": 0}, "max_rows must be at least 1; got 0"),
        ({"row_budget": True}, "row_budget must be a whole number; got True"),
    ],
    ids=str,
)
def test_an_engine_is_made_of_parts_of_their_types(parts: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Engine(**({"base": BASE, "drafter": "none"} | parts))


@pytest.mark.parametrize("name", ["num_rows", "row_tokens", "max_waiting"])
@pytest.mark.parametrize("value", [1.5, "5", [], True, torch.tensor(1.5)], ids=repr)
def test_counts_of_a_scheduler_are_whole_numbers(name: str, value: object) -> None:
    with pytest.raises(UserError, match=f"{name} must be a whole number"):
        Engine(BASE, drafter="none").scheduler(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("folder", [None, 5, True, b"checkpoints", ["a"]], ids=repr)
def test_a_checkpoint_is_named_by_a_path(folder: object) -> None:
    with pytest.raises(UserError, match="folder must be a path"):
        Engine.load(folder)  # type: ignore[arg-type]


def test_a_path_and_a_device_of_python_are_taken(tmp_path: Path) -> None:
    save_tiny_llama(tmp_path)
    base = load_base(BaseConfig(path=tmp_path, device=torch.device("cpu")))  # type: ignore[arg-type]
    assert base.path == str(tmp_path) and base.device == torch.device("cpu")
    assert Engine(base, drafter="none").generate(["ab"], 2)[0].ids


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"path": 5}, "base.path must be a folder or a hub id; got 5"),
        ({"path": ["a"]}, r"base.path must be a folder or a hub id; got \['a'\]"),
        ({"device": None}, "base.device must be auto, cpu, cuda or cuda:N; got None"),
        ({"tensor_parallel": "2"}, "base.tensor_parallel must be a number; got '2'"),
    ],
    ids=str,
)
def test_a_base_is_named_by_texts(settings: dict[str, Any], words: str, tmp_path: Path) -> None:
    save_tiny_llama(tmp_path)
    with pytest.raises(UserError, match=words):
        load_base(BaseConfig(**({"path": str(tmp_path)} | settings)))
