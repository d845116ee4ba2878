"""Two runs of one command are equal to the last bit when that is asked for."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from scripts import run_main, run_script

from euryale.cli.script import script
from euryale.system import determinism
from euryale.system.determinism import be_deterministic, refusal

SMALL = [
    "data.block_size=64", "data.batch_size=2", "data.held_out_one_in=4", "regenerate.num_prompts=12",
    "regenerate.prompt_tokens=8", "regenerate.new_tokens=12", "heads.num_heads=2", "optim.num_steps=3",
    "optim.eval_batches=1", "calibrate.num_prompts=2", "calibrate.prompt_tokens=8", "calibrate.new_tokens=8",
    "calibrate.node_counts=[1,2,4]", "calibrate.repeats=1", "calibrate.context_tokens=16", "evaluate.num_prompts=2",
    "evaluate.max_new_tokens=8", "evaluate.repeats=1", "calibrate.temperatures=[0.8]",
]  # fmt: skip


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is switched for the rest of a process is switched back for the other tests."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)
    torch.random.set_rng_state(state)


def test_two_runs_give_the_same_heads_and_two_answers_the_same_text(tmp_path: Path, tiny_llama_folder: Path) -> None:
    rows = [{"text": f"row {i}: " + "the quick brown fox jumps over the lazy dog " * 3} for i in range(40)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told: list[dict] = []
    for name in ("one", "two"):
        torch.manual_seed(len(told))  # what was drawn before must not matter
        result = run_script(
            "train/run.py", "base=hf", f"base.path={tiny_llama_folder}", "base.device=cpu", "data=files",
            f"data.files={tmp_path}/texts.jsonl", f"output={tmp_path}", f"regenerate.output={tmp_path}/text-{name}",
            *SMALL, "deterministic=true", f"name={name}",
        )  # fmt: skip
        assert result.status == 0, result.err
        assert torch.are_deterministic_algorithms_enabled() and torch.get_num_threads() == 1
        told.append(result.last_line)
    heads = [(tmp_path / name / "heads.safetensors").read_bytes() for name in ("one", "two")]
    assert heads[0] == heads[1]
    assert told[0]["held_out_loss_nats"] == told[1]["held_out_loss_nats"]
    answers = [
        run_script(
            "infer/run.py", f"checkpoint={tmp_path / name}", "prompt=the quick", "max_new_tokens=24", "temperature=0.8",
            "deterministic=true",
        )
        for name in ("one", "one", "two")
    ]  # fmt: skip
    texts = [answer.out.rsplit("\n", 2)[0] for answer in answers]
    assert len(texts[0]) > 10 and texts[0] == texts[1] == texts[2]


def test_threads_that_were_asked_for_stay() -> None:
    torch.set_num_threads(2)
    be_deterministic(3, threads=2)
    assert torch.get_num_threads() == 2 and os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    drawn = torch.rand(3)
    be_deterministic(3, threads=0)
    assert torch.get_num_threads() == 1 and torch.equal(drawn, torch.rand(3))


def test_an_operation_that_cannot_be_deterministic_is_a_user_s_error(monkeypatch: pytest.MonkeyPatch) -> None:
    found = "cumsum_cuda_kernel does not have a deterministic implementation, but you set it."

    @script("export")
    def main(config: object) -> dict[str, object]:
        raise RuntimeError(found + "\nmore of it")

    result = run_main(main, "plot.py")
    assert result.status == 2 and "Traceback" not in result.err
    assert f"deterministic=true cannot be kept: {found} Use base.device=cpu" in result.err
    assert refusal(RuntimeError("out of memory")) is None and refusal(RuntimeError()) is None
    assert determinism.refusal(RuntimeError(found)) is not None
