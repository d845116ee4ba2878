"""The benchmark of kernels on a CPU: every kernel through its specification, the table, the file and the picture."""

import json
from pathlib import Path

import pytest
import torch
from profiled import peak_of_tensors
from scripts import run_script

from euryale.errors import UserError
from euryale.evaluation.bench_kernels import META, bench_kernels, copy_bandwidth, needed_bytes
from euryale.evaluation.config import KernelShapes
from euryale.evaluation.kernel_cases import cases
from euryale.kernels.registry import KERNELS, Choice

CPU = torch.device("cpu")
SMALL = dict(context=40, heads=4, kv_heads=2, head_size=64, hidden=128, inner=256, layers=2, vocab=500)
OVERRIDES = [f"shapes.{name}={size}" for name, size in SMALL.items()] + ["repeats=2", "threads=1"]


def test_every_kernel_is_timed_and_compared() -> None:
    rows = bench_kernels(KernelShapes(**SMALL), 4, torch.bfloat16, CPU, [], repeats=2)
    assert [row["kernel"] for row in rows] == list(KERNELS)
    assert all(row["us"] > 0 and row["bytes"] > 0 and row["difference"] == 0 for row in rows)


def test_the_sizes_that_the_registry_is_asked_about_are_those_in_its_table() -> None:
    """A misspelt one would be limited by nothing, in silence."""
    for case in cases(KernelShapes(**SMALL), 4, torch.bfloat16, CPU, list(KERNELS)):
        limited = {name for implementation in KERNELS[case.kernel] for name in implementation.limits}
        assert limited - set(case.sizes) <= {"depth"} and set(case.sizes) <= limited, case.kernel


def test_a_backend_that_computes_something_else_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = Choice("swiglu", "torch", "", lambda gate_up: gate_up[:, :256] * 1.1)
    monkeypatch.setattr("euryale.evaluation.bench_kernels._choice", lambda case, device, backend: wrong)
    rows = bench_kernels(KernelShapes(**SMALL), 4, torch.float32, CPU, ["swiglu"], repeats=1)
    assert all(row["difference"] > 0.05 for row in rows)


def test_a_kernel_goes_by_its_other_name_and_an_unknown_one_is_refused() -> None:
    rows = bench_kernels(KernelShapes(**SMALL), 2, torch.float32, CPU, ["verify_prefix", "accept_walk"], repeats=1)
    assert [row["kernel"] for row in rows] == ["accept_walk"]
    with pytest.raises(UserError, match="kernels must be of tree_attention, .*; got flash"):
        bench_kernels(KernelShapes(**SMALL), 2, torch.float32, CPU, ["flash"], repeats=1)


@pytest.mark.parametrize("kernel", [kernel for kernel in KERNELS if kernel != "accept_walk"])  # takes some KB
def test_the_memory_that_a_case_takes_is_foretold(kernel: str) -> None:
    shapes = KernelShapes(**SMALL | dict(context=500, hidden=256, vocab=5000))
    (case,) = cases(shapes, 64, torch.bfloat16, META, [kernel])
    took = peak_of_tensors(lambda: bench_kernels(shapes, 64, torch.bfloat16, CPU, [kernel], repeats=1))
    assert 0.9 * took <= needed_bytes(case) <= 1.25 * took


def test_a_copy_has_a_speed() -> None:
    assert copy_bandwidth(CPU, repeats=2) > 1e8


def test_the_scripts_print_tables_and_keep_results(tmp_path: Path) -> None:
    file = tmp_path / "results" / "kernels.jsonl"
    for _ in range(2):
        result = run_script(
            "infer/bench_kernels.py", *OVERRIDES, "kernels=[draw,swiglu]", "nodes=[1,4]", f"output={file}"
        )
        assert result.status == 0, result.err
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(lines) == 2 and len(lines[0]["rows"]) == 4 and lines[0]["shapes"]["vocab"] == 500
    assert file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "of a copy's speed" in result.out
    table = run_script("infer/list_kernels.py", "device=cpu")
    assert table.status == 0 and table.last_line["runs"] == dict.fromkeys(KERNELS, "torch")
    assert "verify_prefix = accept_walk" in table.out


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("shapes.heads=5", "shapes.heads must be a multiple of shapes.kv_heads=2; got 5"),
        ("nodes=[65]", "nodes must be numbers from 1 to 64"),
        ("dtype=int8", "dtype must be one of float32, bfloat16, float16; got int8"),
        ("shapes.vocab=0", "shapes.vocab must be at least 1; got 0"),
        ("shapes.context=10000000", "at these sizes kv_commit of 4 nodes takes about"),
        ("shapes.inner=10000000", "at these sizes nf4_linear of 4 nodes takes about"),
        ("shapes.batch=10000000", "Take smaller shapes, or leave it out of kernels=[...]"),
        ("device=tpu", "device must be auto, cpu, cuda or cuda:N; got tpu"),
    ],
)
def test_what_cannot_be_is_refused(override: str, told: str) -> None:
    result = run_script("infer/bench_kernels.py", *OVERRIDES, "nodes=[4]", override)
    assert result.status == 2 and told in result.err
