"""Steps at the sizes of a base: what is measured, what it is compared with, and what is refused before it is built."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from plain_heads import plain_heads
from random_models import random_base
from scripts import run_script

from euryale.base.base import Base
from euryale.base.config import BaseConfig
from euryale.decoding.drafters.heads import HeadsDrafter
from euryale.decoding.drafters.interface import Drafter, DraftInput
from euryale.errors import UserError
from euryale.evaluation import bench_steps as module
from euryale.evaluation.bench_steps import bench_steps, check_memory
from euryale.evaluation.config import StepsConfig
from euryale.evaluation.step_ways import WAYS, AnyTokens, runs_on
from euryale.report.step_tables import roofline_card, steps_table
from euryale.system.paths import PROJECT

CPU = torch.device("cpu")
TINY = StepsConfig(ways=["dense", "dense_heads"], nodes=[1, 3], context_tokens=5, repeats=1, generate_tokens=2)


def test_every_way_is_timed_at_every_number_of_nodes_and_set_against_the_roofline() -> None:
    of_base = random_base(vocab_size=29).model.config
    result = bench_steps(of_base, plain_heads("hydra", num_heads=2, induction=2), BaseConfig(device="cpu"), TINY)
    assert list(result["ways"]) == ["dense", "dense_heads"] and list(result["generate"]) == [
        "dense_dynamic",
        "dense_static",
    ]
    for found in result["ways"].values():
        assert list(found["ms"]) == [1, 3] and all(ms > 0 for ms in found["ms"].values())
        assert found["of_one"][3] == found["ms"][3] / found["ms"][1]
        # Weights over a copy's bandwidth, over the time that one node took.
        least_ms = result["roofline"]["dense"]["bytes"] / result["copy_gb_per_s"] / 1e6
        assert found["share_of_copy"] == pytest.approx(least_ms / found["ms"][1])
    assert steps_table(result).splitlines()[2].startswith("dense ")
    assert "dense: a step reads" in roofline_card(result)


def test_a_way_that_this_machine_does_not_have_is_left_out_and_said(caplog: pytest.LogCaptureFixture) -> None:
    assert not runs_on(WAYS["dense_eager"], CPU) and not runs_on(WAYS["nf4_kernel"], CPU)
    assert all(runs_on(way, torch.device("cuda")) for way in WAYS.values())
    config = StepsConfig(ways=["dense_eager"], nodes=[1], context_tokens=5, repeats=1, generate_tokens=2)
    result = bench_steps(random_base().model.config, plain_heads("hydra"), BaseConfig(device="cpu"), config)
    assert result["ways"] == {} and "dense_eager is left out: there is no such way on cpu" in caplog.text


def test_a_way_that_fails_costs_its_own_figures_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    step_ms = module._step_ms

    def only_dense(base: Base, drafter: Drafter, config: StepsConfig) -> float:
        if isinstance(drafter, HeadsDrafter):
            raise torch.OutOfMemoryError("no room\nfor heads")
        return step_ms(base, drafter, config)

    monkeypatch.setattr(module, "_step_ms", only_dense)
    monkeypatch.setattr(module, "CACHES", {"dynamic": {}})
    result = bench_steps(random_base().model.config, plain_heads("hydra"), BaseConfig(device="cpu"), TINY)
    assert result["ways"]["dense_heads"] == {"failed": "no room"} and result["ways"]["dense"]["ms"][3] > 0
    assert steps_table(result).endswith("dense_heads was not measured: no room")


def test_drafts_without_meaning_are_tokens_of_the_base_on_a_binary_tree() -> None:
    drafter = AnyTokens(random_base(vocab_size=5), 7)
    draft = drafter.propose(DraftInput(torch.zeros(1, 16), torch.tensor([3])))
    assert draft.tokens_BN.tolist() == [[3, 4, 0, 1, 2, 3, 4]]
    assert draft.shape.parents_RN.tolist() == [[0, 0, 0, 1, 1, 2, 2]] and drafter.max_depth == 2


def test_weights_that_do_not_fit_are_refused_before_they_are_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "free_bytes", lambda device: 1000)
    with pytest.raises(UserError, match="must fit into memory: at these sizes they take about"):
        check_memory(random_base().model.config, BaseConfig(device="cpu"), TINY)


def test_the_defaults_fit_the_smallest_shape() -> None:
    """`python infer/bench_steps.py shape=tiny` as it stands in the docs."""
    steps = OmegaConf.load(PROJECT / "conf" / "bench_steps.yaml").steps
    shape = OmegaConf.load(PROJECT / "conf" / "shape" / "tiny.yaml")
    assert steps.context_tokens + steps.generate_tokens <= shape.max_length


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("steps.ways=[fp8]", "steps.ways must be of dense, dense_heads, .*; got fp8"),
        ("steps.nodes=[65]", "steps.nodes must be numbers from 1 to 64"),
        ("steps.nodes=[]", "steps.nodes must be numbers from 1 to 64"),
        ("steps.repeats=0", "steps.repeats must be at least 1; got 0"),
        ("steps.context_tokens=2000", "must fit into a context of 1024 tokens; got 2000 and 64"),
    ],
)
def test_what_cannot_be_is_refused(override: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run_script("infer/bench_steps.py", "shape=tiny", "base.device=cpu", override)
    assert result.status == 2
    with pytest.raises(UserError, match=told):
        raise UserError(result.err)
