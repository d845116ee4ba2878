"""base.dtype: what auto takes on a processor, and that heads are decoded in the dtype they were trained on."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from euryale.base import precision
from euryale.base.config import BaseConfig
from euryale.base.precision import pick_dtype
from euryale.cli.open_engine import open_base

CPU, WIDE, NARROW = torch.device("cpu"), LlamaConfig(hidden_size=512), LlamaConfig(hidden_size=256)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    caches = (precision._cpu_dtype, precision._warn_if_slow, precision.bfloat16_speedup)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


def with_speedup(monkeypatch: pytest.MonkeyPatch, ratio: float) -> None:
    def speedup() -> float:
        return ratio

    speedup.cache_clear = lambda: None  # type: ignore[attr-defined]
    monkeypatch.setattr(precision, "bfloat16_speedup", speedup)


@pytest.mark.parametrize(
    "ratio, expected, said",
    [
        (2.1, torch.bfloat16, "bfloat16, because this processor multiplies bfloat16 2.1 times as fast"),
        (1.1, torch.float32, "float32, because this processor multiplies bfloat16 1.1 times as fast"),
        (0.0, torch.float32, "float32, because there is no bfloat16 here"),
    ],
)
def test_auto_is_what_the_clock_says_and_says_so_once(
    ratio: float, expected: torch.dtype, said: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with_speedup(monkeypatch, ratio)
    with caplog.at_level(logging.INFO, logger="euryale"):
        assert {pick_dtype("auto", CPU, WIDE) for _ in range(3)} == {expected}
    assert len(caplog.records) == 1
    assert said in caplog.text


def test_a_narrow_base_stays_in_float32_whatever_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    with_speedup(monkeypatch, 9.0)
    assert pick_dtype("auto", CPU, NARROW) == torch.float32
    assert pick_dtype("bfloat16", CPU, NARROW) == torch.bfloat16


def test_bfloat16_where_it_is_slow_works_with_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with_speedup(monkeypatch, 0.4)
    for _ in range(2):
        assert pick_dtype("bfloat16", CPU, WIDE) == torch.bfloat16
    assert [record.message for record in caplog.records] == [
        "base.dtype=bfloat16 is slower than float32 on this processor (0.4 times its speed)"
    ]


def test_the_clock_gives_a_number() -> None:
    assert 0.0 <= precision.bfloat16_speedup() < 100.0


@pytest.mark.parametrize("asked, expected", [("auto", torch.bfloat16), ("float32", torch.float32)])
def test_heads_are_decoded_in_their_own_dtype_unless_another_is_asked_for(
    tiny_llama_folder: Path, asked: str, expected: torch.dtype
) -> None:
    description = {"dtype": "bfloat16", "base": {"path": str(tiny_llama_folder), "quantization": "none"}}
    assert open_base(BaseConfig(path=None, dtype=asked, device="cpu"), description).dtype == expected
