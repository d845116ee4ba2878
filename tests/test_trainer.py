"""A run learns, weighs every label alike, stops and goes on as if nothing had happened, and keeps honest records."""

import json
import logging
import math
import os
import random
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import killed_runs
import pytest
import torch
from killed_runs import MemoryStream, make_batch, make_trainer
from plain_heads import plain_heads
from test_checkpoint import largest_file
from tiny_llama import save_tiny_llama

from euryale.base.base import Base, load_base
from euryale.base.config import BaseConfig
from euryale.errors import UserError
from euryale.heads.checkpoint import load_heads, read_description
from euryale.heads.find_checkpoint import find_checkpoint
from euryale.heads.heads import build_heads
from euryale.training.config import ObjectiveConfig, OptimConfig, wandb_mode
from euryale.training.metrics_log import MetricsLog, truncate_metrics
from euryale.training.objective import OBJECTIVES, medusa1_loss
from euryale.training.optimizer import build_optimizer, learning_rate
from euryale.training.resume import random_state, restore_random_state
from euryale.training.saves import find_run
from euryale.training.signals import SIGNALS, Interrupted, SignalGuard
from euryale.training.trainer import Trainer


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Bit-equality is promised for the same number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def finished(tiny_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of an uninterrupted run."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs") / "whole"
    make_trainer(tiny_base, folder).fit()
    return folder


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def without_speed(records: list[dict]) -> list[dict]:
    return [{key: value for key, value in record.items() if key != "tokens_per_s"} for record in records]


def assert_same_run(folder: Path, other: Path, base: Base) -> None:
    """Equal losses on every line and bit-equal heads."""
    assert without_speed(lines(folder)) == without_speed(lines(other))
    for one, two in zip(load_heads(folder, base).parameters(), load_heads(other, base).parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_run_leaves_heads_metrics_and_one_save(finished: Path, tiny_base: Base) -> None:
    assert sorted(path.name for path in finished.iterdir()) == [
        "heads.json", "heads.safetensors", "metrics.jsonl", "resume",
    ]  # fmt: skip
    assert [path.name for path in (finished / "resume").iterdir()] == ["step-00000012"]
    records = lines(finished)
    assert [record["step"] for record in records] == [3, 5, 6, 9, 10, 12]
    assert set(records[0]) == {
        "step", "loss_nats", "head_loss_nats", "head_top1", "grad_norm", "tokens_per_s", "lr", "tokens",
    }  # fmt: skip
    assert {"held_out_loss_nats", "held_out_head_top1", "held_out_head_top5", "held_out_head_top10"} <= set(records[1])
    assert {"loss_nats", "held_out_loss_nats"} <= set(records[-1])
    assert records[-1]["tokens"] == 12 * 2 * 2 * 16
    origin = read_description(finished)["provenance"]
    assert origin["step"] == 12 and origin["settings"]["optim.lr"] == 3e-3
    assert find_checkpoint("last", finished.parent) == finished


def test_heads_learn_a_text_that_repeats_itself(tiny_base: Base, tmp_path: Path) -> None:
    class Counting(MemoryStream):
        def __next__(self) -> SimpleNamespace:
            batch = super().__next__()
            batch.ids_BT = (3 + (torch.arange(16) + 5 * torch.arange(2)[:, None] + self.number) % 20).long()
            return batch

    changes = {"num_steps": 60, "gradient_accumulation": 1, "lr": 1e-2, "log_every": 20, "save_every": 0}
    trainer = make_trainer(
        tiny_base, tmp_path / "run", batches=Counting(), optim=changes, objective=ObjectiveConfig(loss="ce")
    )
    trainer.held_out = [next(Counting())]
    metrics = trainer.fit()
    assert metrics["held_out_head_top1"] == [1.0, 1.0]
    assert [path.name for path in (tmp_path / "run/resume").iterdir()] == ["step-00000060"]
    assert metrics["checkpoint"] == str(tmp_path / "run") and metrics["step"] == 60
    assert metrics["tokens"] == 60 * 32 and metrics["seconds"] > 0


def test_every_label_of_a_step_weighs_the_same_however_it_is_split(tiny_base: Base, tmp_path: Path) -> None:
    # Two micro-batches of unequal label counts against one batch of both: a mean of means would differ.
    one, two = make_batch(1), make_batch(2)
    two.is_target_BT[:, :12] = False
    both = SimpleNamespace(**{name: torch.cat([getattr(one, name), getattr(two, name)]) for name in vars(one)})
    steps = []
    for name, parts in (("split", [one, two]), ("whole", [both])):
        stream = MemoryStream()
        optim = {"num_steps": 1, "warmup_steps": 0, "gradient_accumulation": len(parts), "eval_batches": 0}
        stream.__class__ = type("Given", (MemoryStream,), {"__next__": lambda self, parts=parts: parts.pop(0)})
        trainer = make_trainer(tiny_base, tmp_path / name, batches=stream, optim=optim)
        before = [p.detach().clone() for p in trainer.parameters.values()]
        norm = trainer.train_step().grad_norm
        after = trainer.parameters.values()
        steps.append((norm, torch.cat([(p.detach() - q).flatten() for p, q in zip(after, before, strict=True)])))
    # The same float32 sums in another order: 1e-7 of a norm; a mean of means is off by a tenth. AdamW divides gradients
    # by their own size, so that one which is rounding alone moves by anything: steps are compared as a whole.
    assert steps[0][0] == pytest.approx(steps[1][0], rel=1e-5)
    assert (steps[0][1] - steps[1][1]).norm() < 1e-3 * steps[1][1].norm()


def test_the_step_loss_and_gradient_norm_are_means_over_labels(tiny_base: Base, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_base, tmp_path / "run", optim={"gradient_accumulation": 1})
    sums = medusa1_loss(tiny_base, trainer.heads, make_batch(1), ObjectiveConfig())
    (sums.loss / sums.count_K.sum()).backward()
    expected = math.sqrt(sum(float(p.grad.square().sum()) for p in trainer.heads.parameters() if p.grad is not None))
    trainer.optimizer.zero_grad(set_to_none=True)
    result = trainer.train_step()
    assert result.grad_norm == pytest.approx(expected, rel=1e-5)  # the same gradient, divided before or after: 1e-7
    assert result.loss_K == sums.loss_K.tolist() and result.count_K == sums.count_K.tolist()


@pytest.mark.parametrize(
    "number, status",
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR2, 140)],
    ids=["ctrl-c", "sigterm", "before a time limit of Slurm"],
)
@pytest.mark.parametrize("batch", [7, 8, 13], ids=["at a save", "at an evaluation", "in between"])
def test_a_stopped_run_goes_on_exactly(
    finished: Path, tiny_base: Base, tmp_path: Path, number: int, status: int, batch: int
) -> None:
    handlers = [signal.getsignal(n) for n in SIGNALS]
    run = tmp_path / "run"
    trainer = make_trainer(tiny_base, run, lambda n: os.kill(os.getpid(), number) if n == batch else None)
    with pytest.raises(Interrupted, match=f"resume={run}") as stopped:
        trainer.fit()
    assert stopped.value.exit_status == status
    assert trainer.step == batch // 2 + 1  # the step was finished
    assert [signal.getsignal(n) for n in SIGNALS] == handlers
    assert load_heads(run, tiny_base).num_heads == 2
    assert find_run("last", tmp_path) == run
    make_trainer(tiny_base, run, resume=True).fit()
    assert_same_run(run, finished, tiny_base)


def test_runs_killed_at_any_moment_go_on_exactly(finished: Path, tiny_base: Base, tmp_path: Path) -> None:
    killed_runs.kill_and_resume(tiny_base, tmp_path)
    for name in killed_runs.SCENARIOS:
        assert_same_run(tmp_path / name, finished, tiny_base)
        assert [path.name for path in (tmp_path / name / "resume").iterdir()] == ["step-00000012"], name


def test_resuming_a_finished_run_changes_nothing(finished: Path, tiny_base: Base) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    metrics = make_trainer(tiny_base, finished, resume=True).fit()
    assert metrics["held_out_loss_nats"] == lines(finished)[-1]["held_out_loss_nats"]
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"optim": {"lr": 1e-3}}, r"optim\.lr: 0\.003 then, 0\.001 now"),
        ({"optim": {"num_steps": 24}}, r"optim\.num_steps"),
        ({"heads": plain_heads(num_heads=1, width=1.0)}, r"heads\.num_heads: 2 then, 1 now"),
        ({"objective": ObjectiveConfig(loss="ce")}, r"objective\.loss: kl then, ce now"),
        ({"settings": {"data": {"block": 32}}}, r"data\.block: \(not set\) then, 32 now"),
    ],
)
def test_a_changed_setting_is_refused_by_name(finished: Path, tiny_base: Base, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_trainer(tiny_base, finished, resume=True, **changes)


def test_settings_that_no_weight_depends_on_may_change(finished: Path, tiny_base: Base) -> None:
    make_trainer(tiny_base, finished, resume=True, optim={"log_every": 1, "save_every": 1, "eval_every": 2})


def test_a_run_is_not_overwritten_and_nothing_is_not_resumed(finished: Path, tiny_base: Base, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must not hold a run"):
        make_trainer(tiny_base, finished)
    with pytest.raises(UserError, match="nothing is saved"):
        make_trainer(tiny_base, tmp_path / "empty", resume=True)
    with pytest.raises(UserError, match=f"{finished}"):
        find_run("nowhere", finished.parent)


def test_a_run_killed_before_its_first_save_begins_again(finished: Path, tiny_base: Base, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "resume" / ".step-00000004.tmp").mkdir(parents=True)  # the save that the kill met
    (run / "config.yaml").write_text("seed: 0\n")
    (run / "metrics.jsonl").write_text('{"step": 3, "loss_nats": 9.0}\n{"step": ')
    assert find_run("last", tmp_path) == find_run("run", tmp_path) == run
    make_trainer(tiny_base, run, resume=True).fit()
    assert_same_run(run, finished, tiny_base)


def test_a_run_whose_saves_were_deleted_does_not_begin_again(finished: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    (run / "config.yaml").write_text("seed: 0\n")
    shutil.rmtree(run / "resume")
    with pytest.raises(UserError, match="nothing is saved"):
        find_run("run", tmp_path)


def test_an_edited_state_is_refused(tiny_base: Base, tmp_path: Path) -> None:
    make_trainer(tiny_base, tmp_path / "run", optim={"num_steps": 1}).fit()
    path = tmp_path / "run/resume/step-00000001/state.json"
    state = json.loads(path.read_text())
    for key, value in (("moments", {"x": 1}), ("step", None), ("cursor", 5), ("settings", [])):
        path.write_text(json.dumps(state | {key: value}))
        with pytest.raises(UserError, match="state.json is damaged: its checksum does not fit"):
            make_trainer(tiny_base, tmp_path / "run", optim={"num_steps": 1}, resume=True)
    del state["checksum"]  # as older runs have none
    path.write_text(json.dumps(state))
    assert make_trainer(tiny_base, tmp_path / "run", optim={"num_steps": 1}, resume=True).step == 1


@pytest.mark.parametrize("file", ["tensors.safetensors", "state.json"])
def test_a_damaged_save_is_refused(tiny_base: Base, tmp_path: Path, file: str) -> None:
    trainer = make_trainer(tiny_base, tmp_path / "run", optim={"num_steps": 1})
    trainer.fit()
    path = tmp_path / "run/resume/step-00000001" / file
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(UserError, match=f"{file}.*(damaged|cut short)"):
        make_trainer(tiny_base, tmp_path / "run", optim={"num_steps": 1}, resume=True)


def test_a_full_disk_stops_the_run_and_keeps_the_last_save(finished: Path, tiny_base: Base, tmp_path: Path) -> None:
    stack = []

    def fill(number: int) -> None:
        if number == 9:  # after the save at step 4
            stack.append(largest_file(20_000))
            stack[0].__enter__()

    with pytest.raises(UserError, match="could not be saved"):
        try:
            make_trainer(tiny_base, tmp_path / "run", fill).fit()
        finally:
            stack[0].__exit__(None, None, None)
    assert [path.name for path in (tmp_path / "run/resume").iterdir()] == ["step-00000004"]
    make_trainer(tiny_base, tmp_path / "run", resume=True).fit()
    assert_same_run(tmp_path / "run", finished, tiny_base)


def test_a_loss_that_is_not_finite_stops_before_it_reaches_the_weights(tiny_base: Base, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_base, tmp_path / "run")

    def poison(number: int) -> None:
        if number == 6:
            with torch.no_grad():
                next(iter(trainer.parameters.values())).view(-1)[0] = float("inf")

    trainer.batches.at = poison  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"Step 4: the loss .*Its rows: memory:7, memory:8\. The weights"):
        trainer.fit()
    assert trainer.step == 3 and not (tmp_path / "run/resume").exists()
    others = list(trainer.parameters.values())[1:]
    assert all(parameter.isfinite().all() for parameter in others)


def test_a_loss_that_is_not_finite_is_saved_before_and_resumed_behind_its_rows(
    tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        entry = OBJECTIVES["medusa1"]

        def loss(base, heads, batch, config, stage):  # type: ignore[no-untyped-def]
            part = medusa1_loss(base, heads, batch, config)
            is_bad = torch.equal(batch.ids_BT, make_batch(11).ids_BT)
            return part._replace(heads_3K=part.heads_3K * math.nan) if is_bad else part

        patch.setitem(OBJECTIVES, "medusa1", entry._replace(loss=loss))
        with pytest.raises(UserError, match=rf"Step 6: .*Its rows: memory:11\. The run is saved.*resume={run}"):
            make_trainer(tiny_base, run).fit()
    [save] = (run / "resume").iterdir()
    state = json.loads((save / "state.json").read_text())
    assert (state["step"], state["cursor"]) == (5, {"number": 12})
    resumed = make_trainer(tiny_base, run, resume=True)
    assert resumed.fit()["step"] == 12 and resumed.batches.state_dict() == {"number": 26}
    assert load_heads(run, tiny_base).num_heads == 2


def test_a_save_at_the_same_step_takes_the_new_cursor(tiny_base: Base, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_base, tmp_path / "run")
    trainer.train_step()
    trainer.save()
    [save] = (tmp_path / "run/resume").iterdir()
    before = (save / "state.json").stat().st_mtime_ns
    trainer.save()
    assert (save / "state.json").stat().st_mtime_ns == before
    next(trainer.batches)
    trainer.save()
    state = json.loads((save / "state.json").read_text())
    assert state["cursor"] == {"number": 3} and state["step"] == 1


def test_a_batch_whose_every_target_is_masked_moves_nothing_and_is_counted(tiny_base: Base, tmp_path: Path) -> None:
    class SomeMasked(MemoryStream):
        def __next__(self) -> SimpleNamespace:
            batch = super().__next__()
            batch.is_target_BT &= self.number not in (3, 4, 5)  # all of step 2, half of step 3
            return batch

    trainer = make_trainer(tiny_base, tmp_path / "run", batches=SomeMasked(), optim={"log_every": 1, "num_steps": 3})
    trainer.train_step()
    before = [parameter.detach().clone() for parameter in trainer.parameters.values()]
    moments = {key: value.clone() for key, value in next(iter(trainer.optimizer.state.values())).items()}
    result = trainer.train_step()
    assert result.num_masked == 2 and result.grad_norm == 0 and result.is_finite
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.parameters.values(), strict=True))
    assert all(torch.equal(value, next(iter(trainer.optimizer.state.values()))[key]) for key, value in moments.items())
    metrics = make_trainer(
        tiny_base, tmp_path / "other", batches=SomeMasked(), optim={"log_every": 1, "num_steps": 3}
    ).fit()
    assert metrics["masked_batches"] == 3
    records = [record for record in lines(tmp_path / "other") if "grad_norm" in record]
    assert [record.get("masked_batches", 0) for record in records] == [0, 2, 1]
    assert "loss_nats" not in records[1] and math.isfinite(records[2]["loss_nats"])


def test_a_text_without_labels_is_said_instead_of_trained_on(tiny_base: Base, tmp_path: Path) -> None:
    class Masked(MemoryStream):
        def __next__(self) -> SimpleNamespace:
            batch = super().__next__()
            batch.is_target_BT[:] = False
            return batch

    with pytest.raises(UserError, match="must have labels; got none in the last 12 steps"):
        make_trainer(tiny_base, tmp_path / "run", batches=Masked()).fit()


def test_held_out_text_without_labels_is_refused_before_training(tiny_base: Base, tmp_path: Path) -> None:
    masked = make_batch(1)
    masked.is_target_BT[:] = False
    heads = build_heads(plain_heads(num_heads=1), tiny_base.lm_head_weight)
    with pytest.raises(UserError, match="held-out text has no token to score"):
        Trainer(tiny_base, heads, ObjectiveConfig(), OptimConfig(), MemoryStream(), [masked], tmp_path / "run")


def test_random_states_come_back() -> None:
    state = json.loads(json.dumps(random_state(torch.device("cpu"))))
    drawn = torch.rand(3).tolist(), random.random()
    restore_random_state([state], 0, torch.device("cpu"))
    assert (torch.rand(3).tolist(), random.random()) == drawn
    restore_random_state([state], 1, torch.device("cpu"))
    assert torch.rand(3).tolist() != drawn[0], "a process that was not there before draws numbers of its own"


def test_pretraining_trains_the_base_and_saves_a_folder_that_loads(tmp_path: Path) -> None:
    base = load_base(BaseConfig(path=str(save_tiny_llama(tmp_path / "start")), dtype="float32", device="cpu"))
    before = base.lm_head_weight.detach().clone()
    optim = OptimConfig(name="adamw", num_steps=8, warmup_steps=0, lr=1e-2, log_every=8, eval_every=0, save_every=4)
    objective = ObjectiveConfig(kind="pretrain", loss="ce")
    held_out = [make_batch(1)]

    class OneBatch(MemoryStream):
        def __next__(self) -> SimpleNamespace:
            return make_batch(1)

    metrics = Trainer(base, None, objective, optim, OneBatch(), held_out, tmp_path / "run").fit()
    assert metrics["held_out_perplexity"] < 90 and metrics["held_out_perplexity"] == pytest.approx(
        math.exp(metrics["held_out_loss_nats"])
    )
    assert not torch.equal(before, base.lm_head_weight)
    again = load_base(BaseConfig(path=str(tmp_path / "run/base"), dtype="float32", device="cpu"))
    assert torch.equal(again.lm_head_weight, base.lm_head_weight.bfloat16().float())


@pytest.mark.parametrize("tied", [False, True])
def test_interrupted_pretraining_goes_on_exactly(tmp_path: Path, tied: bool) -> None:
    start = save_tiny_llama(tmp_path / "start", tie_word_embeddings=tied)
    optim = OptimConfig(name="adamw", num_steps=6, warmup_steps=0, log_every=2, eval_every=0, save_every=2)

    def run(name: str, at: Callable[[int], None] = lambda n: None, resume: bool = False) -> Base:
        base = load_base(BaseConfig(path=str(start), dtype="float32", device="cpu"))
        objective = ObjectiveConfig(kind="pretrain", loss="ce")
        Trainer(base, None, objective, optim, MemoryStream(at), [], tmp_path / name, resume=resume).fit()
        return base

    whole = run("whole")
    with pytest.raises(Interrupted):
        run("cut", lambda n: os.kill(os.getpid(), signal.SIGTERM) if n == 2 else None)
    again = run("cut", resume=True)
    for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_learning_rate_warms_up_and_ends_where_it_should() -> None:
    config = OptimConfig(lr=1.0, warmup_steps=4, num_steps=11, min_lr_ratio=0.1)
    rates = [learning_rate(step, config) for step in range(11)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[7] == pytest.approx(0.55) and rates[10] == pytest.approx(0.1)
    assert all(a > b for a, b in zip(rates[4:], rates[5:], strict=False))
    smoke = OptimConfig(lr=1.0, warmup_steps=20, num_steps=3)
    assert [learning_rate(step, smoke) for step in range(3)] == pytest.approx([0.05, 0.1, 0.15])
    assert learning_rate(0, OptimConfig(lr=1.0, warmup_steps=0, num_steps=1)) == 1.0


def test_only_matrices_decay(tiny_base: Base, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_base, tmp_path / "run")
    groups = build_optimizer(trainer.parameters, OptimConfig(name="adamw", weight_decay=0.3)).param_groups
    assert [(group["weight_decay"], {p.ndim for p in group["params"]}) for group in groups] == [(0.3, {2}), (0.0, {1})]
    assert sum(len(group["params"]) for group in groups) == len(trainer.parameters)


MUON = {"name": "muon", "lr": 0.02, "weight_decay": 0.3}


def test_muon_moves_the_matrices_of_heads_and_adamw_the_rest(tiny_base: Base, tmp_path: Path) -> None:
    heads = build_heads(plain_heads(num_heads=2, output="own"), tiny_base.lm_head_weight)
    parameters = dict(heads.named_parameters()) | {"adapter.a": torch.nn.Parameter(torch.ones(2, 2))}
    names = {id(parameter): name for name, parameter in parameters.items()}
    config = OptimConfig(**MUON, adamw_lr=0.004)
    optimizer = build_optimizer(parameters, config, heads_multiplier=4.0, blocks=heads.blocks_of_matrices())
    found = {
        names[id(p)]: (g["blocks"], g["lr_multiplier"] * config.lr, g["weight_decay"])
        for g in optimizer.param_groups for p in g["params"]
    }  # fmt: skip
    assert found.keys() == parameters.keys()
    assert found["bodies.1.0.hidden_in.weight"] == found["bodies.1.0.out.weight"] == (1, 0.02, 0.3)
    assert found["bodies.1.0.tokens_in.weight"] == (2, 0.02, 0.3)  # the root and one token of the path
    assert found["bodies.0.0.hidden_in.bias"] == found["outputs.0.weight"] == (0, 0.004, 0.0)
    assert found["adapter.a"] == (0, 0.001, 0.0)
    with pytest.raises(UserError, match="optim=muon moves the matrices of heads"):
        build_optimizer(parameters, config)


def test_a_run_with_muon_goes_on_exactly(tiny_base: Base, tmp_path: Path) -> None:
    optim = MUON | {"num_steps": 6}
    make_trainer(tiny_base, tmp_path / "whole", optim=optim).fit()
    stop_at_five = make_trainer(
        tiny_base, tmp_path / "run", lambda n: os.kill(os.getpid(), signal.SIGINT) if n == 5 else None, optim=optim
    )
    with pytest.raises(Interrupted):
        stop_at_five.fit()
    make_trainer(tiny_base, tmp_path / "run", optim=optim, resume=True).fit()
    assert_same_run(tmp_path / "run", tmp_path / "whole", tiny_base)


@pytest.mark.parametrize(
    "changes",
    [{"name": "sgd"}, {"adamw_lr": 0.0}, {"autocast": "fp16"}, {"num_steps": 0}, {"lr": 0.0}, {"lr": math.nan},
     {"beta2": 1.0}, {"min_lr_ratio": 2.0}, {"save_every": -1}, {"gradient_accumulation": 0}],
    ids=str,
)  # fmt: skip
def test_a_setting_that_cannot_be_trained_with_is_refused(changes: dict) -> None:
    with pytest.raises(UserError, match=f"optim.{next(iter(changes))} must be"):
        OptimConfig(**changes).check()


def test_a_half_precision_base_is_not_pretrained(tiny_llama_folder: Path, tmp_path: Path) -> None:
    base = load_base(BaseConfig(path=str(tiny_llama_folder), dtype="bfloat16", device="cpu"))
    with pytest.raises(UserError, match=r"base\.dtype=float32"):
        Trainer(base, None, ObjectiveConfig(kind="pretrain"), OptimConfig(), MemoryStream(), [], tmp_path / "run")


def test_heads_train_beside_a_half_precision_base(tiny_llama_folder: Path, tmp_path: Path) -> None:
    base = load_base(BaseConfig(path=str(tiny_llama_folder), dtype="bfloat16", device="cpu"))
    for name, autocast in (("plain", "none"), ("autocast", "bf16")):
        trainer = make_trainer(base, tmp_path / name, optim={"num_steps": 2, "autocast": autocast})
        assert math.isfinite(trainer.fit()["held_out_loss_nats"])
        assert {parameter.dtype for parameter in trainer.parameters.values()} == {torch.float32}
        assert load_heads(tmp_path / name, base).num_heads == 2


def test_metrics_after_the_resumed_step_and_torn_lines_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    torn = b'{"step": 1}\n5\n{"step": "x"}\n{"other": 1}\n\x00\x00\xff\n{"step": 2}\n{"step": 3}\n{"ste'
    path.write_bytes(torn)
    truncate_metrics(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_wandb_is_online_only_with_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert [wandb_mode(asked) for asked in ("off", "auto", "offline")] == [None, "offline", "offline"]
    with pytest.raises(UserError, match="WANDB_API_KEY"):
        wandb_mode("online")
    monkeypatch.setenv("WANDB_API_KEY", "x")
    assert [wandb_mode(asked) for asked in ("auto", "offline", "online")] == ["online", "offline", "online"]
    with pytest.raises(UserError, match="off, auto, offline, online"):
        wandb_mode("yes")


def test_wandb_gets_scalars(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list = []
    run = SimpleNamespace(id="abc", log=lambda record, step: calls.append((step, record)), finish=lambda: None)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **k: calls.append(k) or run))
    log = MetricsLog(tmp_path / "metrics.jsonl", "offline", {"optim.lr": 1.0}, None)
    log.write({"step": 3, "head_top1": [0.5, 0.25]})
    log.close()
    assert calls[0]["mode"] == "offline" and log.wandb_id == "abc"
    assert calls[1] == (3, {"step": 3, "head_top1/0": 0.5, "head_top1/1": 0.25})


def test_progress_says_the_loss(tiny_base: Base, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="euryale"):
        make_trainer(tiny_base, tmp_path / "run", optim={"num_steps": 6}).fit()
    [line] = [record.getMessage() for record in caplog.records if "tokens/s" in record.getMessage()]
    loss = lines(tmp_path / "run")[-1]["loss_nats"]
    assert line.startswith(f"training 6/6 steps: loss {loss:.3f} nats, ") and line.endswith(" 0 s left")


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def enter() -> None:
        with SignalGuard():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [before]


def test_a_second_signal_acts_as_it_would_without_us() -> None:
    of_the_shell = signal.signal(signal.SIGINT, signal.default_int_handler)  # which ignores it in the background
    try:
        with SignalGuard() as guard, pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            assert guard.received == signal.SIGINT
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, of_the_shell)


def test_wandb_without_a_network_is_offline_at_once_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    modes = []

    def init(mode: str, **_: object) -> SimpleNamespace:
        modes.append(mode)
        return SimpleNamespace(id="run", finish=lambda: None)

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        MetricsLog(tmp_path / "a" / "metrics.jsonl", "online", {}, None).close()
    MetricsLog(tmp_path / "b" / "metrics.jsonl", "online", {}, None).close()
    assert modes == ["online", "offline"]
    assert "cannot be reached: offline from the start" in caplog.text
