"""Several processes train what one would, leave one run, stop together, and print one message."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from forked import in_processes
from scripts import ROOT, SMALL, Result, run_script, write_texts
from tiny_llama import save_tiny_llama

from euryale.base.base import Base, load_base
from euryale.base.config import BaseConfig
from euryale.base.fsdp import shard_base
from euryale.cli.train_schemas import TrainConfig, check_parallel
from euryale.data.batches import BatchStream, build_batches
from euryale.data.config import DataConfig
from euryale.data.distributed import Dealt
from euryale.errors import UserError
from euryale.heads.checkpoint import load_heads
from euryale.regenerate.config import RegenerateConfig
from euryale.system import processes
from euryale.system.files import read_json, write_json
from euryale.training.config import OptimConfig
from euryale.training.resume import FORMAT_VERSION, share_batches


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("processes")
    write_texts(place)
    return place


@pytest.fixture(scope="session")
def arguments(place: Path, tiny_llama_folder: Path) -> list[str]:
    return [
        "base=hf", f"base.path={tiny_llama_folder}", "base.device=cpu", "data=files",
        f"data.files={place}/texts.jsonl", f"output={place}/runs", f"regenerate.output={place}/written",
        *SMALL, "optim.num_steps=6",
    ]  # fmt: skip


@pytest.fixture(scope="session")
def alone(arguments: list[str], place: Path) -> Path:
    """The folder of a run of one process that takes two batches a step; leave it as it is."""
    result = run_script("train/run.py", *arguments, "name=alone", "optim.gradient_accumulation=2")
    assert result.status == 0, result.err
    return place / "runs" / "alone"


def lines(folder: Path) -> list[dict]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key != "tokens_per_s"} for record in records]


def assert_same_training(folder: Path, other: Path, base: Base) -> None:
    """Equal but for the order in which labels are added up. Two addends have one order: 1e-5 is never used up, on no
    processor, and a batch that is lost or met twice moves a loss by percents."""
    assert len(lines(folder)) == len(lines(other)) > 0
    for one, two in zip(lines(folder), lines(other), strict=True):
        assert one.keys() == two.keys()
        for key in one:
            assert one[key] == pytest.approx(two[key], rel=1e-5, abs=1e-6), key
    for one, two in zip(load_heads(folder, base).parameters(), load_heads(other, base).parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


# Whole runs


def test_two_processes_take_the_steps_of_one_and_leave_one_run(
    arguments: list[str], alone: Path, place: Path, tiny_base: Base, tmp_path: Path
) -> None:
    def work() -> Result:
        return run_script("train/run.py", *arguments, "name=two")

    first, second = in_processes(2, work, tmp_path)
    assert (first.status, second.status) == (0, 0), first.err + second.err
    assert_same_training(place / "runs" / "two", alone, tiny_base)
    assert first.last_line["checkpoint"] == str(place / "runs" / "two") and first.last_line["total"] == 2
    assert second.out == "" and second.err == "", "the first one speaks for all"
    assert sorted(path.name for path in (place / "runs").glob("two*")) == ["two"]
    assert {path.name for path in (place / "runs" / "two").iterdir()} == {path.name for path in alone.iterdir()}


def test_a_run_folder_named_by_the_clock_is_one_for_all(arguments: list[str], place: Path, tmp_path: Path) -> None:
    def work() -> Result:
        time.sleep(1.1 * processes.number())  # a second apart, each would take a name of its own
        changes = (f"output={place}/clock", "parallel=fsdp", "data.regenerate=false", "optim.num_steps=1")
        return run_script("train/run.py", *arguments, *changes)

    first, second = in_processes(2, work, tmp_path)
    assert first.status == second.status == 0, first.err + second.err
    assert len(list((place / "clock").iterdir())) == 1


def test_a_divided_base_trains_the_same_heads_and_says_that_nothing_was_decoded(
    arguments: list[str], place: Path, tiny_base: Base, tmp_path: Path
) -> None:
    raw = [*arguments, "data.regenerate=false"]
    whole = run_script("train/run.py", *raw, "name=whole", "optim.gradient_accumulation=2")
    assert whole.status == 0, whole.err
    [first, _] = in_processes(2, lambda: run_script("train/run.py", *raw, "name=divided", "parallel=fsdp"), tmp_path)
    assert first.status == 0, first.err
    assert_same_training(place / "runs" / "divided", place / "runs" / "whole", tiny_base)
    assert first.last_line["metric"] == first.last_line["held_out_loss_nats"]
    assert "infer/calibrate.py checkpoint=" in first.out


def test_layers_of_a_divided_base_lie_in_shares_and_compute_the_same(tiny_llama_folder: Path, tmp_path: Path) -> None:
    def work() -> tuple[float, int, int]:
        processes.join("cpu")
        base = load_base(BaseConfig(path=str(tiny_llama_folder), dtype="float32", device="cpu"))
        ids_BT = torch.arange(3, 35).view(2, 16) + processes.number()
        batch = ids_BT, torch.arange(16).expand(2, 16), torch.zeros(2, 16, dtype=torch.long)
        layers = list(base.model.base_model.layers.parameters())
        before, expected_BTD = sum(p.numel() for p in layers), base.forward_packed(*batch)
        shard_base(base, torch.device("cpu"))
        for _ in range(2):
            with torch.no_grad():
                difference = (base.forward_packed(*batch) - expected_BTD).abs().max()
        after = sum(p.to_local().numel() for p in base.model.base_model.layers.parameters())
        assert type(base.lm_head_weight) is torch.nn.Parameter, "heads read it directly"
        return float(difference), before, after

    answers = in_processes(2, work, tmp_path)
    assert [difference for difference, _, _ in answers] == [0.0, 0.0]
    assert sum(after for _, _, after in answers) == answers[0][1]
    assert all(after < before for _, before, after in answers)


@pytest.mark.parametrize(
    "changes, message",
    [
        (("name=alone",), "is there already"),
        (("data.files=nowhere.txt",), "nowhere.txt"),
        (("base.path=nowhere/at/all",), "there is no such folder"),
        (("parallel=fsdp",), "cannot write its training text"),
    ],
)
def test_a_mistake_is_said_by_the_first_process(
    arguments: list[str], alone: Path, place: Path, tmp_path: Path, changes: tuple[str, ...], message: str
) -> None:
    name = () if "name=alone" in changes else ("name=refused",)
    first, second = in_processes(2, lambda: run_script("train/run.py", *arguments, *name, *changes), tmp_path)
    assert (first.status, second.status) == (2, 2)
    assert message in first.err and "Traceback" not in first.err + second.err
    assert not (place / "runs" / "refused").exists() and (alone / "report.json").exists()


def test_ctrl_c_under_torchrun_saves_once_and_one_process_goes_on(
    arguments: list[str], alone: Path, place: Path, tmp_path: Path
) -> None:
    folder = place / "runs" / "interrupted"
    slow = [*arguments, "name=interrupted", "optim.num_steps=100000"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    log = tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [*launcher, "train/run.py", *slow], cwd=ROOT, stdout=file, stderr=file, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 120
        while not (folder / "metrics.jsonl").exists() or len(lines(folder)) < 2:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        os.killpg(process.pid, signal.SIGINT)  # what a terminal does: torchrun and both processes
        process.wait(timeout=60)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert log.read_text().count("everything is saved") == 1, log.read_text()
    [save] = (folder / "resume").iterdir()
    state = read_json(save / "state.json")
    assert len(state["random"]) == 2 and state["settings"]["optim.batches_per_step"] == 2
    # The rest by one process; that its steps are the next ones shows in the losses: those of the run that was alone.
    settings = (folder / "config.yaml").read_text().replace("num_steps: 100000", f"num_steps: {state['step'] + 2}")
    (folder / "config.yaml").write_text(settings)
    state["settings"]["optim.num_steps"] = state["step"] + 2
    del state["checksum"]  # of the state as it was
    write_json(save / "state.json", state)
    result = run_script("train/run.py", f"resume={folder}")
    assert result.status == 0, result.err
    assert [record["step"] for record in lines(folder)] == list(range(1, state["step"] + 3))
    assert lines(folder)[-1]["tokens"] == (state["step"] + 2) * 2 * 128
    expected = lines(alone)[0]
    assert lines(folder)[0]["loss_nats"] == pytest.approx(expected["loss_nats"], rel=1e-5)


# Parts


def test_batches_are_dealt_without_overlap_or_loss_and_any_number_of_processes_goes_on(
    place: Path, tiny_base: Base
) -> None:
    config = DataConfig(kind="files", files=str(place / "texts.jsonl"), block_size=32, batch_size=1, regenerate=False)

    def stream() -> BatchStream:
        return build_batches(config, "train", tiny_base.tokenizer)

    whole = stream()
    expected, origins = [], []
    for _ in range(18):
        expected.append(next(whole).ids_BT)
        origins.append(whole.origins)
    hands = [Dealt(stream(), rank, 3) for rank in range(3)]
    dealt = [next(hand).ids_BT for _ in range(4) for hand in hands]
    assert [hand.origins for hand in hands] == origins[9:12], "each names the rows of its own batch"
    states = [json.loads(json.dumps(hand.state_dict())) for hand in hands]
    assert states[0] == states[1] == states[2]
    fewer = [Dealt(stream(), rank, 2) for rank in range(2)]
    for hand in fewer:
        hand.load_state_dict(states[0])
    dealt += [next(hand).ids_BT for _ in range(3) for hand in fewer]
    assert all(torch.equal(one, two) for one, two in zip(dealt, expected, strict=True))


def test_too_little_data_to_share_is_said_once(
    tmp_path: Path, tiny_base: Base, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "few.txt").write_text("ten letters and more of the same")
    config = DataConfig(kind="files", files=str(tmp_path / "few.txt"), held_out_one_in=0, block_size=32, batch_size=2)
    hand = Dealt(build_batches(config, "train", tiny_base.tokenizer), 1, 4)
    for _ in range(3):
        next(hand)
    assert caplog.text.count("it is too little to share") == 1 and "Start fewer processes" in caplog.text


SAVED = {"format_version": FORMAT_VERSION, "settings": {"optim.batches_per_step": 6}}


def test_batches_of_a_step_are_shared_evenly_or_the_number_of_processes_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "resume" / "step-00000001" / "state.json", SAVED)
    optim = OptimConfig(gradient_accumulation=6)
    shares = {n: share_batches(tmp_path, optim, n).gradient_accumulation for n in (1, 2, 3, 6)}
    assert shares == {1: 6, 2: 3, 3: 2, 6: 1}
    with pytest.raises(UserError, match="takes 6 batches a step, and 4 processes .* Go on with 1, 2, 3, 6 processes"):
        share_batches(tmp_path, optim, 4)


def test_a_single_process_is_the_first_and_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    processes.join("cuda:1")
    processes.wait()
    processes.leave()
    assert (processes.count(), processes.number(), processes.is_first()) == (1, 0, True)
    assert processes.first(lambda: "done") == "done"


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "junk"}, "WORLD_SIZE in the environment must be a whole number of at least 1.*got junk"),
        ({"WORLD_SIZE": "-3"}, "WORLD_SIZE in the environment must be .*got -3"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE in the environment must be .*got 0"),
        ({"LOCAL_RANK": "q"}, "LOCAL_RANK in the environment must be a whole number of at least 0"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE must come with RANK and MASTER_ADDR.*nproc_per_node=2, or unset"),
        ({"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "x"}, "RANK must fit WORLD_SIZE=2; got 2"),
        ({"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "x", "LOCAL_WORLD_SIZE": "3"}, "LOCAL_WORLD_SIZE must fit"),
    ],
)
def test_what_another_job_left_in_the_environment_is_refused(
    environment: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    processes.check_environment()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        processes.check_environment()
    result = run_script("infer/run.py", "checkpoint=null")
    assert result.status == 2 and result.err.count("\n") == 1 and result.err.startswith("error: ")


def test_a_device_that_processes_cannot_share_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="base.device=cuda:0 names one GPU, and 2 processes cannot share it"):
        processes.join("cuda:0")


@pytest.mark.parametrize(
    "config, count, message",
    [
        (TrainConfig(parallel="tensor"), 2, "parallel must be one of .*; got tensor"),
        (TrainConfig(parallel="fsdp"), 1, "and there is one. Start several: torchrun"),
        (TrainConfig(parallel="fsdp"), 2, "so it cannot write its training text"),
        (TrainConfig(parallel="fsdp", base=BaseConfig(quantization="nf4")), 2, "cannot divide a base with .*nf4"),
    ],
)
def test_what_a_divided_base_cannot_do_is_refused(
    config: TrainConfig, count: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(count))
    with pytest.raises(UserError, match=message):
        check_parallel(config)
    config.objective.kind = "pretrain"
    if config.parallel == "fsdp" and count > 1:
        with pytest.raises(UserError, match="objective must be medusa1; got pretrain"):
            check_parallel(config)


def test_a_divided_base_trains_on_what_a_server_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_parallel(TrainConfig(parallel="fsdp", regenerate=RegenerateConfig(url="http://127.0.0.1:9/v1")))


def test_a_4_bit_base_is_not_divided(tmp_path: Path) -> None:
    base = load_base(BaseConfig(path=str(save_tiny_llama(tmp_path / "base")), dtype="float32", device="cpu"))
    base.quantization = "nf4"
    with pytest.raises(UserError, match="parallel=fsdp cannot divide a base with base.quantization=nf4"):
        shard_base(base, torch.device("cpu"))


def test_resuming_under_more_processes_needs_no_setting(alone: Path) -> None:
    assert share_batches(alone, OptimConfig(gradient_accumulation=2), 2) == replace(
        OptimConfig(), gradient_accumulation=1
    )


@pytest.mark.parametrize(
    ("reason", "is_told"),
    [
        ("[..] Timed out waiting 7200000ms for recv operation to complete", True),
        ("Watchdog caught collective operation timeout: WorkNCCL(SeqNum=5)", True),
        ("shapes do not fit", False),
    ],
)
def test_a_process_that_waits_in_vain_says_so(reason: str, is_told: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hung collective was waited for for 30 days."""
    assert processes.refusal(RuntimeError(reason)) is None, "a single process waits for none"
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    message = processes.refusal(RuntimeError(reason))
    assert (message is not None) == is_told
    assert not is_told or "process 1 of 2 waited for another" in str(message)
    assert processes.PATIENCE.total_seconds() <= 4 * 3600
