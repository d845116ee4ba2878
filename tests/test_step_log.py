"""Every step leaves a line when that is asked for, and nothing otherwise."""

import json
from pathlib import Path

import pytest
from random_models import random_base
from scripts import run_script

from euryale.decoding.engine import Engine
from euryale.errors import UserError
from euryale.evaluation.step_log import log_steps

PARTS = ("prefill", "draft", "verify", "accept", "commit")


def test_every_step_is_a_line_whose_parts_add_up(tmp_path: Path) -> None:
    engine = Engine(random_base("llama", vocab_size=13, seed=3), drafter="lookup")
    prompts = [[3, 1, 4, 1, 5], [9, 2]]
    before = dict(engine.seconds)
    with log_steps(engine, str(tmp_path / "deep" / "s.jsonl")):
        answers = engine.generate(prompts, 12)
    lines = [json.loads(text) for text in (tmp_path / "deep" / "s.jsonl").read_text().splitlines()]
    assert len(lines) == max(answer.num_steps for answer in answers)
    assert [line["rows"] for line in lines[:2]] == [2, 2]
    assert all(1 <= line["num_nodes"] <= engine.num_nodes() for line in lines)
    # An end inside a path cuts it, so a step may have gained more than was kept, and never less.
    assert sum(map(sum, (line["tokens"] for line in lines))) >= sum(len(answer.ids) for answer in answers)
    for part in PARTS:
        spent = 1000 * (engine.seconds[part] - before[part])
        assert sum(line[f"{part}_ms"] for line in lines) == pytest.approx(spent, abs=1e-3 * len(lines))
    assert lines[0]["prefill_ms"] > 0 == lines[-1]["prefill_ms"]
    assert "device_bytes" not in lines[0] and lines[0]["host_bytes"] >= 0


def test_without_a_file_nothing_is_called_and_afterwards_neither(tmp_path: Path) -> None:
    engine = Engine(random_base("llama", vocab_size=13, seed=3), drafter="none")
    with log_steps(engine, None):
        assert engine.on_step is None
    with pytest.raises(ValueError, match="stop"), log_steps(engine, str(tmp_path / "s.jsonl")):
        assert engine.on_step is not None
        raise ValueError("stop")
    assert engine.on_step is None
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="steps=.* cannot be written"), log_steps(engine, str(tmp_path / "file" / "x")):
        pass


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full here")
@pytest.mark.parametrize("num_tokens", [4, 400])  # told as the file is closed, and in the middle
def test_a_full_disk_is_told(num_tokens: int) -> None:
    engine = Engine(random_base("llama", vocab_size=13, seed=3, max_length=512), drafter="none")
    with pytest.raises(UserError, match="steps=/dev/full cannot be written"), log_steps(engine, "/dev/full"):
        engine.generate([[3, 1, 4]], num_tokens)
    assert engine.on_step is None


def test_run_and_bench_log_their_steps(tmp_path: Path, tiny_llama_folder: Path) -> None:
    (tmp_path / "p.txt").write_text("the quick\n")
    arguments = ["checkpoint=null", "drafter=lookup", f"base.path={tiny_llama_folder}", "base.device=cpu", "threads=1",
                 "max_new_tokens=6"]  # fmt: skip
    run = run_script("infer/run.py", *arguments, "prompt=the quick", f"steps={tmp_path}/run.jsonl")
    assert run.status == 0, run.err
    assert len((tmp_path / "run.jsonl").read_text().splitlines()) == run.last_line["num_steps"]
    bench = run_script(
        "infer/bench.py", *arguments, f"prompts={tmp_path}/p.txt", "repeats=1", "contenders=[ar,euryale]",
        f"steps={tmp_path}/bench.jsonl",
    )  # fmt: skip
    assert bench.status == 0, bench.err
    # The engine under test only, its warm-up included; plain decoding is another engine.
    assert len((tmp_path / "bench.jsonl").read_text().splitlines()) == 2 * run.last_line["num_steps"]
