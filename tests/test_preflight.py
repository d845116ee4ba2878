"""What a later stage would refuse is refused before the first one."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from plain_heads import plain_heads

from euryale.base.base import Base
from euryale.base.config import BaseConfig
from euryale.cli.check_run import check_rows, check_settings
from euryale.cli.preflight import check_base
from euryale.cli.train_schemas import EvaluateConfig, TrainConfig
from euryale.data.config import DataConfig
from euryale.errors import UserError
from euryale.evaluation.config import CalibrateConfig
from euryale.regenerate.config import RegenerateConfig
from euryale.training.config import ObjectiveConfig, OptimConfig, ScratchConfig


def test_the_default_run_is_fine() -> None:
    check_settings(TrainConfig())


INT4 = BaseConfig(quantization="int4")
PRETRAIN: dict[str, Any] = {"objective": ObjectiveConfig(kind="pretrain")}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"data": DataConfig(kind="web")}, "data.kind must be one of stdlib, files.*; got web"),
        ({"heads": plain_heads(kind="clover")}, "heads.kind must be one of medusa, hydra, eagle; got clover"),
        ({"objective": ObjectiveConfig(loss="mse")}, "objective.loss must be one of kl, ce, lk; got mse"),
        ({"optim": OptimConfig(num_steps=0)}, "optim.num_steps must be at least 1; got 0"),
        ({"wandb": "maybe"}, "wandb must be one of off, auto, offline, online; got maybe"),
        ({"metric": "speed"}, "metric must be one of tau, tau_16, speedup.*; got speed"),
        ({"seed": -1}, "seed must be a whole number .*; got -1"),
        ({"regenerate": RegenerateConfig(seed=2**62)}, "regenerate.seed must be"),
        ({"calibrate": CalibrateConfig(seed=-1)}, "calibrate.seed must be a whole number .*; got -1"),
        ({"calibrate": CalibrateConfig(temperatures=[0.0, -1.0])}, "temperature must be from 0 to 1e\\+06; got -1"),
        ({"calibrate": CalibrateConfig(temperatures=[])}, "calibrate.temperatures must not be empty"),
        ({"calibrate": CalibrateConfig(node_counts=[2, 4])}, r"calibrate.node_counts must be .*; got \[2, 4\]"),
        ({"calibrate": CalibrateConfig(node_counts=[1, 8]), "metric": "tau_16"}, r"metric=tau_16 .*\[1, 8\]. Add 16"),
        ({"calibrate": CalibrateConfig(context_tokens=0)}, "calibrate.context_tokens must be at least 1; got 0"),
        ({"calibrate": CalibrateConfig(new_tokens=3)}, "calibrate.new_tokens must be at least .*=4.*; got 3"),
        ({"evaluate": EvaluateConfig(temperature=-0.5)}, "temperature must be from 0 to 1e\\+06; got -0.5"),
        ({"evaluate": EvaluateConfig(repeats=0)}, "evaluate.repeats must be at least 1; got 0"),
        ({"scratch": ScratchConfig(enabled=True)}, "scratch.enabled=true .* recipe=pretrain_tiny"),
        ({"scratch": ScratchConfig(enabled=True, num_heads=7), **PRETRAIN}, "scratch.hidden_size=256"),
        ({"optim": OptimConfig(name="muon"), **PRETRAIN}, "optim=muon .* Add optim=adamw"),
        ({"base": INT4, "objective": ObjectiveConfig(kind="medusa2")}, "is for decoding: .* got medusa2. Use"),
        ({"base": INT4, "optim": OptimConfig(name="adamw"), **PRETRAIN}, "for decoding: .* got pretrain. Use"),
        ({"data": DataConfig(kind="files", files="gone.txt")}, "data.files=gone.txt: there is no such file"),
        ({"data": DataConfig(held_out_one_in=0)}, "data.held_out_one_in must be at least 2, because this run measures"),
    ],
)  # fmt: skip
def test_an_impossible_setting_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_settings(TrainConfig(**changes))


def test_pretraining_needs_held_out_rows_only_to_evaluate() -> None:
    config = TrainConfig(data=DataConfig(held_out_one_in=0), optim=OptimConfig(name="adamw"), **PRETRAIN)
    with pytest.raises(UserError, match="held_out_one_in must be at least 2"):
        check_settings(config)
    check_settings(replace(config, optim=OptimConfig(name="adamw", eval_batches=0)))


def test_rows_are_looked_at_before_a_base_is_loaded(tmp_path: Path) -> None:
    one, bad, empty = tmp_path / "one.jsonl", tmp_path / "bad.jsonl", tmp_path / "empty.txt"
    one.write_text('{"text": "a single row"}\n')
    bad.write_text("not json\n")
    empty.write_text("")
    data = DataConfig(kind="files", files=str(one), held_out_one_in=20)
    check_rows(replace(data, held_out_one_in=0), needs_held_out=False)
    with pytest.raises(UserError, match="one.jsonl gives no row for the split"):
        check_rows(data, needs_held_out=True)
    with pytest.raises(UserError, match="bad.jsonl:1: not valid JSON"):
        check_rows(replace(data, files=str(bad)), needs_held_out=False)
    with pytest.raises(UserError, match="empty.txt is empty"):
        check_rows(replace(data, files=str(empty)), needs_held_out=False)


def test_a_block_fits_the_context(tiny_base: Base) -> None:
    check_base(tiny_base, TrainConfig(data=DataConfig(block_size=256)))
    with pytest.raises(UserError, match="data.block_size=512 .* ends at 256. Give data.block_size=256 or less"):
        check_base(tiny_base, TrainConfig())
