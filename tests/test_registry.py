"""The table of kernels: what runs on which machine, and what a request for something else is told."""

import inspect
import logging

import pytest
import torch

from euryale.errors import UserError
from euryale.kernels import backends, registry
from euryale.kernels.registry import ALIASES, KERNELS, choose, standing

CPU, CARD = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with an H100, nvcc and triton, as far as the registry asks."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    monkeypatch.setattr(backends, "_triton_problem", lambda: None)
    monkeypatch.setattr(backends, "_compiler", lambda: backends.Compiler("nvcc 13.0", lambda source, card: b""))
    # No module of a backend is imported: triton need not be installed where this test runs.
    monkeypatch.setattr(registry, "_load", lambda kernel, implementation: len)


def test_every_kernel_has_a_specification_and_every_implementation_its_signature() -> None:
    for name, implementations in KERNELS.items():
        assert implementations[-1].backend == "torch" and not implementations[-1].limits, name
        assert len({x.backend for x in implementations}) == len(implementations)
        specification = inspect.signature(registry._load(name, implementations[-1])).parameters
        for implementation in implementations:
            if implementation.backend == "triton":
                pytest.importorskip("triton", reason="the Triton kernels need triton (pip install -e '.[dev]')")
            parameters = inspect.signature(registry._load(name, implementation)).parameters
            assert list(parameters)[: len(specification)] == list(specification), (name, implementation.backend)


def test_a_cpu_runs_the_specification_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="euryale.kernels.registry"):
        chosen = choose("tree_attention", CPU, dtype=torch.float32, head_size=64)
    assert chosen.backend == "torch" and len(caplog.records) == 1
    assert caplog.messages[0].startswith("kernel tree_attention: torch (the specification")
    assert "not triton: " in caplog.messages[0] and "not cuda: it needs a CUDA card" in caplog.messages[0]


def test_auto_takes_the_first_that_fits(a_card: None) -> None:
    assert choose("tree_attention", CARD, dtype=torch.bfloat16, head_size=128, num_nodes=64).backend == "triton"
    assert choose("nf4_linear", CARD, dtype=torch.bfloat16, num_rows=16, block_size=64).backend == "cuda"
    half = choose("nf4_linear", CARD, dtype=torch.float16, num_rows=16)
    assert half.backend == "triton" and "not cuda: dtype must be bfloat16; got float16" in half.reason
    assert choose("tree_attention", CARD, dtype=torch.bfloat16, head_size=80).backend == "torch"


@pytest.mark.parametrize(
    ("kernel", "backend", "sizes", "told"),
    [
        (
            "tree_attention",
            "triton",
            {"head_size": 80},
            "head_size must be 16, 32, 64 or 128; got 80. Use backend=torch",
        ),
        ("tree_attention", "cuda", {"head_size": 32}, "head_size must be 64 or 128; got 32. Use backend=triton"),
        ("tree_attention", "cuda", {"group_size": 17}, "group_size must be 1 to 16; got 17. Use backend=torch"),
        ("tree_attention", "cuda", {"dtype": torch.float16}, "dtype must be bfloat16; got float16. Use backend=triton"),
        ("verify_prefix", "triton", {"num_nodes": 65}, "accept_walk: .*num_nodes must be 1 to 64; got 65"),
        ("nf4_linear", "cuda", {"num_inputs": 96}, "num_inputs must be a multiple of 64 .* got 96. Use backend=torch"),
        ("nf4_linear", "cuda", {"block_size": 128}, "block_size must be 64; got 128"),
        ("kv_append", "cuda", {}, "kv_write: backend must be one of auto, triton, torch; got cuda"),
        ("tree_attention", "cuBLAS", {}, "backend must be one of auto, triton, cuda, torch; got cuBLAS"),
        ("attention", "auto", {}, "kernel must be one of tree_attention, .*kv_append; got attention"),
    ],
)
def test_what_cannot_run_is_refused_with_what_would(
    a_card: None, kernel: str, backend: str, sizes: dict[str, object], told: str
) -> None:
    with pytest.raises(UserError, match=told):
        choose(kernel, CARD, backend, **sizes)


def test_an_old_card_and_missing_tools_are_named(a_card: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_compiler", lambda: "nvcc was not found on PATH, and NVRTC could not be loaded")
    with pytest.raises(UserError, match="nvcc was not found on PATH.* Use backend=triton"):
        choose("nf4_linear", CARD, "cuda", dtype=torch.bfloat16)
    monkeypatch.setattr(backends, "_triton_problem", lambda: "triton 3.1.0 is too old; 3.6 or newer is needed")
    with pytest.raises(UserError, match="triton 3.1.0 is too old.* Use backend=torch"):
        choose("nf4_linear", CARD, "triton")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(UserError, match="compute capability 8.0 or newer; a card has 7.5. Use backend=torch"):
        choose("nf4_linear", CARD, "cuda")


def test_triton_on_a_cpu_is_its_interpreter_and_only_where_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_triton_problem", lambda: None)
    monkeypatch.setattr(registry, "_load", lambda kernel, implementation: len)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose("draw", CPU, "triton").backend == "triton" and choose("draw", CPU).backend == "torch"
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(UserError, match="draw: backend=triton cannot run: it needs a CUDA card; the device is cpu"):
        choose("draw", CPU, "triton")


def test_the_table_says_what_runs(a_card: None) -> None:
    rows = standing(CARD)
    assert {row[0] for row in rows} == set(KERNELS) and not set(ALIASES) & set(KERNELS)
    assert [row[1:3] for row in rows if row[0] == "nf4_linear"] == [
        ("cuda", "runs"), ("triton", "ready"), ("torch", "ready"),
    ]  # fmt: skip
    assert [row[1:3] for row in standing(CPU) if row[0] == "draw"] == [("triton", "no"), ("torch", "runs")]
