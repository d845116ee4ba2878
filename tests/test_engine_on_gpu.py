"""The engine on a GPU: kernels, captured steps and 4-bit products against the specifications. Not yet run on one."""

import logging
from typing import Any

import pytest
import torch
from kernel_bases import with_backend
from random_models import EAGLE_DESIGNS, FAMILIES, HEAD_DESIGNS, random_base, random_heads

from euryale.base.base import Base
from euryale.base.config import BaseConfig
from euryale.base.kernel_llama import KernelLlama
from euryale.base.random_base import random_base as base_of_config
from euryale.decoding.config import AcceptConfig, TreeConfig
from euryale.decoding.device_state import DeviceState, StepKind
from euryale.decoding.device_step import DeviceStep
from euryale.decoding.drafters.heads import HeadsDrafter
from euryale.decoding.engine import Engine
from euryale.decoding.sampling import Sampling
from euryale.decoding.sampling_batch import Asked, columns_of
from euryale.decoding.token_tables import TokenTables
from euryale.decoding.tree.tree import Tree, chain
from euryale.decoding.tree_pass import TreePass
from euryale.heads.config import HeadsConfig

pytestmark = pytest.mark.gpu
CARD = torch.device("cuda")
TREE = Tree.from_paths([(0,), (0, 0), (1,), (0, 1), (0, 0, 0)])
PROMPTS = [[3, 1, 4, 1, 5], [9, 2], [6], [5, 3, 5, 8, 9, 7, 9]]
SEARCHING = next(design for design in HEAD_DESIGNS if design.induction == 2)
SIZES: dict[str, object] = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 64}


def base_on_card(family: str, dtype: torch.dtype = torch.float32) -> Base:
    base = random_base(family, 97, seed=5, dtype=dtype, **SIZES)  # type: ignore[arg-type]
    base.model.to(CARD)
    return base


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("design", [HEAD_DESIGNS[0], SEARCHING, EAGLE_DESIGNS[0]], ids=["plain", "induction", "eagle"])
@pytest.mark.parametrize("family", FAMILIES)
def test_kernels_and_captured_steps_give_the_text_of_the_specifications(
    family: str, design: HeadsConfig, temperature: float, caplog: pytest.LogCaptureFixture
) -> None:
    """In float32, where no two scores are as close as sums in another order are; rows that come and go."""
    base = base_on_card(family)
    assert isinstance(base.forward(), KernelLlama)
    heads = random_heads(design, base).to(CARD)
    how: dict[str, Any] = {"max_new_tokens": 40, "temperature": temperature}
    if design.induction:
        how |= {"top_p": 0.9, "top_k": 20, "repetition_penalty": 1.1, "frequency_penalty": 0.1, "logit_bias": {3: -1.0}}
    plain = Engine(with_backend(base, "auto", forward="plain"), drafter="none")
    expected = [g.ids for g in plain.generate(PROMPTS, **how)]
    with caplog.at_level(logging.INFO, logger="euryale.decoding.step_graphs"):
        for drafter, tree in (
            ("none", None), ("heads", TREE), ("heads", chain(3)), ("heads", TreeConfig("dynamic", 9)), ("lookup", None)
        ):  # fmt: skip
            found = Engine(base, heads, drafter, tree, max_rows=2).generate(PROMPTS, **how)
            assert [g.ids for g in found] == expected, (drafter, tree)
    assert sum("captured the step" in message for message in caplog.messages) >= 4


@pytest.mark.parametrize("backend", ["triton", "cuda", "torch"])
def test_every_backend_can_be_named_in_16_bits(backend: str) -> None:
    """What decides is the check of the forward; near-ties may fall either way, so texts are not compared."""
    base = with_backend(base_on_card("qwen3", torch.bfloat16), backend)
    assert isinstance(base.forward(), KernelLlama)
    heads = random_heads(HEAD_DESIGNS[0], base).to(CARD)
    for answer in Engine(base, heads, "heads", TREE).generate(PROMPTS, 20):
        assert len(answer.ids) == 20


def test_a_4_bit_base_runs_in_three_ways_that_agree() -> None:
    config = random_base("llama", 97, **SIZES).model.config  # type: ignore[arg-type]
    base = base_of_config(config, BaseConfig(quantization="nf4", dtype="bfloat16", device="cuda"))
    states = []
    for runtime in ("kernel", "expand", "bnb"):
        forward = with_backend(base, "auto", runtime).forward()
        assert isinstance(forward, KernelLlama)
        states.append(forward.read_sample([1, 5, 2, 8, 3, 9, 4, 7]).float())
    for found in states[1:]:
        assert (found - states[0]).norm() < 0.05 * states[0].norm()
    assert len(Engine(base, drafter="lookup").generate(PROMPTS, 20)) == len(PROMPTS)


def test_a_step_waits_for_nothing() -> None:
    """torch says of every operation that waits for the card; the first step compiles."""
    base = base_on_card("llama", torch.bfloat16)
    drafter = HeadsDrafter(base, random_heads(SEARCHING, base).to(CARD), TREE)
    everything = Sampling(0.8, 0.9, 5, 0.1, 1.2, 0.5, 0.5, {3: 1.0}, (7,), min_new_tokens=3)
    tables = TokenTables(2, base.vocab_size, CARD)
    for row in range(2):
        tables.add(row, everything, [1, 2], [4])
    step = DeviceStep(base, TreePass(base, drafter, 256), drafter, drafter, AcceptConfig(), tables)
    state = DeviceState.empty(2, step.max_path, base.hidden_size, base.vocab_size, base.dtype, CARD, num_slots=256)
    state.columns_B5.copy_(columns_of([everything] * 2, CARD))
    state.penalties_B3.fill_(1.2)
    kind = StepKind(Asked.by([everything, Sampling()]), True, True, (True,) * 3, True, True, True)
    kv = torch.zeros(2, 2, 2, 2, 256, 64, dtype=base.dtype, device=CARD)
    state.answers.limit_B.fill_(100)
    with torch.inference_mode():
        step(state, kv, kind)
        torch.cuda.set_sync_debug_mode("error")
        try:
            step(state, kv, kind)
        finally:
            torch.cuda.set_sync_debug_mode("default")
