"""base.dtype: what auto takes on a processor, and that heads are decoded in the dtype they were trained on."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from euryale.base import precision
from euryale.base.base import load_base
from euryale.base.config import BaseConfig
from euryale.base.precision import is_stored_in_4_bits, pick_dtype
from euryale.cli.open_engine import open_base
from euryale.decoding.engine import Engine
from euryale.errors import UserError
from euryale.kernels import packed_linear
from euryale.training import optimizer
from euryale.training.config import OptimConfig

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


@pytest.mark.parametrize(
    "asked, ratio, expected",
    [
        ("auto", 1.9, torch.bfloat16),
        ("auto", 0.3, torch.float32),
        ("auto", 0.0, torch.float32),
        ("float32", 1.9, torch.float32),
        ("bfloat16", 0.0, torch.bfloat16),
    ],
)
def test_heads_are_decoded_in_their_own_dtype_unless_another_is_asked_for_or_it_is_slow_here(
    tiny_llama_folder: Path, asked: str, ratio: float, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_speedup(monkeypatch, ratio)
    description = {"dtype": "bfloat16", "base": {"path": str(tiny_llama_folder), "quantization": "none"}}
    assert open_base(BaseConfig(path=None, dtype=asked, device="cpu"), description).dtype == expected


def test_that_heads_are_not_decoded_in_their_own_dtype_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with_speedup(monkeypatch, 0.3)
    with caplog.at_level(logging.INFO, logger="euryale"):
        assert precision.dtype_of_heads("bfloat16", CPU) == "float32"
    assert "float32, because this processor multiplies bfloat16 only 0.3 times as fast" in caplog.text


@pytest.mark.parametrize("ratio, enabled", [(1.9, True), (0.3, False)])
def test_fast_autocast_is_bfloat16_where_it_is_quicker(
    ratio: float, enabled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimizer, "bfloat16_speedup", lambda: ratio)
    with optimizer.autocast(OptimConfig(autocast="fast"), CPU):
        assert torch.is_autocast_enabled("cpu") == enabled


def test_a_bfloat16_base_decodes_exactly_on_a_processor_without_bfloat16_products(
    tiny_llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_linear, "multiplies_bfloat16", lambda: False)
    base = load_base(BaseConfig(path=str(tiny_llama_folder), dtype="bfloat16", device="cpu"))
    plain, drafted = (Engine(base, None, drafter) for drafter in ("none", "lookup"))
    [expected] = plain.generate([[1, 5, 9, 5, 9, 5]], 24, ignore_eos=True)
    [found] = drafted.generate([[1, 5, 9, 5, 9, 5]], 24, ignore_eos=True)
    assert not found.is_exact or found.ids == expected.ids
    assert len(found.ids) == 24


def test_int4_of_weights_that_are_stored_in_nf4_is_refused_by_its_name() -> None:
    stored = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    of_base = LlamaConfig(quantization_config=stored)
    assert is_stored_in_4_bits(of_base, "here", "none")
    with pytest.raises(UserError, match="int4 is made of weights in 16 .*base.path=here are stored in nf4"):
        is_stored_in_4_bits(of_base, "here", "int4")
    assert not is_stored_in_4_bits(LlamaConfig(), "here", "int4")
