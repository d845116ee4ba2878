"""The trial step: a base in any dtype trains heads; what would fail after hours fails before, in one message."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from killed_runs import make_batch
from plain_heads import plain_heads

from euryale.base.base import Base, load_base
from euryale.base.config import BaseConfig, LoraConfig
from euryale.data.config import DataConfig
from euryale.errors import UserError
from euryale.heads.config import HeadsConfig
from euryale.heads.heads import build_heads
from euryale.training import trial
from euryale.training.config import ObjectiveConfig, OptimConfig
from euryale.training.objective import OBJECTIVES, Objective, evaluate_heads, medusa1_loss
from euryale.training.trial import try_step

NUMBERS = [("bfloat16", "none"), ("float16", "none"), ("float32", "nf4"), ("bfloat16", "nf4")]
DATA = DataConfig(batch_size=2, block_size=24)
LORA = LoraConfig(rank=2)


@pytest.fixture(scope="module", params=NUMBERS, ids=lambda numbers: " ".join(numbers))
def base(tiny_llama_folder: Path, request: pytest.FixtureRequest) -> Base:
    dtype, quantization = request.param
    return load_base(BaseConfig(str(tiny_llama_folder), dtype=dtype, quantization=quantization, device="cpu"))


def attempt(base: Base, kind: str = "medusa1", **changes: object) -> None:
    heads = changes.pop("heads", HeadsConfig(num_heads=2))
    optim = OptimConfig(**changes)  # type: ignore[arg-type]
    try_step(base, heads, ObjectiveConfig(kind=kind), LORA, optim, DATA)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["medusa1", "medusa2"])
@pytest.mark.parametrize(
    "design", [HeadsConfig(num_heads=2), plain_heads("eagle", num_heads=2)], ids=["hydra", "eagle"]
)
def test_heads_train_on_a_base_in_any_dtype(base: Base, kind: str, design: HeadsConfig) -> None:
    attempt(base, kind, heads=design)
    attempt(base, kind, heads=replace(design, output="own") if design.kind == "hydra" else design, name="adamw")


def test_losses_in_sixteen_bits_are_near_those_in_thirty_two(tiny_base: Base, tiny_llama_folder: Path) -> None:
    # The base's own numbers are rounded, to 3 and 2 digits: a mean of 70 labels moves by far less than 5%.
    losses = []
    for dtype in ("float32", "float16", "bfloat16"):
        base = load_base(BaseConfig(str(tiny_llama_folder), dtype=dtype, device="cpu"))
        heads = build_heads(plain_heads(num_heads=2, output="lowrank"), base.lm_head_weight)
        sums = medusa1_loss(base, heads, make_batch(1), ObjectiveConfig())
        assert sums.loss.dtype == torch.float32
        sums.loss.backward()
        assert all(p.grad is None or p.grad.dtype == torch.float32 for p in heads.parameters())
        losses.append(float(sums.loss.detach()))
        assert evaluate_heads(base, heads, [make_batch(1)], 1)["loss_nats"] == pytest.approx(
            losses[-1] / float(sums.count_K.sum()), rel=1e-5
        )
    assert losses == pytest.approx([losses[0]] * 3, rel=0.05)


def test_a_trial_leaves_base_and_random_numbers_as_they_were(tiny_base: Base) -> None:
    weights = {name: weight.clone() for name, weight in tiny_base.model.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    attempt(tiny_base, "medusa2")
    assert torch.equal(torch.rand(1), expected)
    now = tiny_base.model.state_dict()
    assert now.keys() == weights.keys() and all(torch.equal(now[name], weights[name]) for name in weights)
    assert tiny_base.adapter is None and not any(p.requires_grad for p in tiny_base.model.parameters())


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried\nmore"),
            r"\(2 x 24 .*ran out of memory: CUDA out of memory",
        ),
        (MemoryError(), "ran out of memory: MemoryError. What saves most is a smaller data.block_size"),
        (RuntimeError("expected m1 and m2 to have the same dtype"), "failed: expected m1 .* Check base.dtype=float32"),
    ],
)
def test_what_a_step_fails_of_is_one_message(
    tiny_base: Base, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setitem(OBJECTIVES, "medusa2", OBJECTIVES["medusa2"]._replace(loss=fail))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=message):
        attempt(tiny_base, "medusa2")
    assert tiny_base.adapter is None


def test_a_loss_that_is_not_finite_is_told(tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    entry: Objective = OBJECTIVES["medusa1"]

    def broken(*arguments: object):  # type: ignore[no-untyped-def]
        sums = entry.loss(*arguments)  # type: ignore[arg-type]
        return sums._replace(loss=sums.loss * torch.nan)

    monkeypatch.setitem(trial.OBJECTIVES, "medusa1", entry._replace(loss=broken))
    with pytest.raises(UserError, match="loss that is not finite .* Check the weights"):
        attempt(tiny_base)
