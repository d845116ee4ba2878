"""Do numbers at the edge of what float32 holds give the text they mean, or their true cause?

Each case names who met it first; "own" is ours.
"""

import math
from dataclasses import dataclass, field

import pytest
import torch
from random_models import FULL, engine_of, five_tokens, random_base

from euryale.base.base import Base
from euryale.cli.overrides import check_numbers
from euryale.decoding.config import AnswerConfig
from euryale.decoding.engine import Engine
from euryale.decoding.sampling import LEAST_TEMPERATURE, Sampling
from euryale.decoding.sampling_batch import SamplingBatch, keep_min_p, keep_top_p
from euryale.errors import UserError

PROMPT = [0, 1, 2]


def greedy() -> list[int]:
    return Engine(five_tokens(), drafter="none").generate([PROMPT], 20)[0].ids


@pytest.mark.parametrize("temperature", [1e-38, 5e-324, 1e-45, 1e-10, 1e-6, LEAST_TEMPERATURE, 1e-4])
@pytest.mark.parametrize("drafter", ["none", "heads"])
def test_hardly_any_temperature_is_greedy(temperature: float, drafter: str) -> None:  # vllm#1623
    engine = engine_of(five_tokens(), FULL) if drafter == "heads" else Engine(five_tokens(), drafter="none")
    assert engine.generate([PROMPT], 20, temperature=temperature, seed=3)[0].ids == greedy()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_16_bits_too(dtype: torch.dtype) -> None:  # own
    engine = Engine(random_base(dtype=dtype), drafter="none")
    assert engine.generate([PROMPT], 10, temperature=1e-38)[0].ids == engine.generate([PROMPT], 10)[0].ids


def test_the_highest_temperature_draws_any_token() -> None:  # own
    [found] = Engine(five_tokens(), drafter="none").generate([PROMPT], 100, temperature=1e6, banned_tokens=[3])
    assert set(found.ids) == {0, 1, 2, 4}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        pytest.param({"temperature": 1e39}, "temperature must be from 0 to 1e\\+06; got 1e\\+39", id="hot (own)"),
        pytest.param({"temperature": math.nan}, "temperature must be a number; got nan", id="nan (own)"),
        pytest.param({"temperature": -1e-45}, "temperature must be from 0", id="just below 0 (own)"),
        pytest.param({"logit_bias": {2: 1e39}}, "logit_bias of token 2 must be .* or -inf for a ban; got 1e\\+39",
                     id="a bias beyond float32 (vllm#1623)"),
        pytest.param({"logit_bias": {2: -1e39}}, "logit_bias of token 2 must be", id="below it (own)"),
        pytest.param({"logit_bias": {2: math.inf}}, "logit_bias of token 2 must be", id="infinite (own)"),
        pytest.param({"logit_bias": {2: math.nan}}, "logit_bias of token 2 must be a number; got nan", id="no number"),
        pytest.param({"logit_bias": {2: 10**400}}, "logit_bias of token 2 must be", id="beyond float64 (own)"),
        pytest.param({"repetition_penalty": 1e-40}, "repetition_penalty must be from 1e-06", id="vllm#1623"),
        pytest.param({"repetition_penalty": 1e40}, "repetition_penalty must be from 1e-06", id="1e40 (own)"),
        pytest.param({"presence_penalty": math.nan}, "presence_penalty must be a number; got nan", id="nan (own)"),
        pytest.param({"frequency_penalty": math.inf}, "frequency_penalty must be from -2 to 2", id="infinity (own)"),
        pytest.param({"top_p": 0.0}, "top_p must be above 0", id="no share (own)"),
        pytest.param({"min_p": 1.0 + 1e-9}, "min_p must be from 0 to 1", id="more than all (own)"),
        pytest.param({"logit_bias": dict.fromkeys(range(5), -math.inf)}, "they forbid all 5", id="all banned (own)"),
        pytest.param({"logit_bias": {0: -math.inf, 1: -math.inf}, "banned_tokens": [2, 3, 4]}, "they forbid all 5",
                     id="all banned by two settings (own)"),
    ],
)  # fmt: skip
def test_what_float32_cannot_hold_is_refused_by_its_name(settings: dict, words: str) -> None:
    engine = Engine(five_tokens(), drafter="none")
    with pytest.raises(UserError, match=words):
        engine.generate([PROMPT], 5, **settings)
    scheduler = engine.scheduler(1, 30)
    with pytest.raises(UserError, match=words):
        scheduler.submit(PROMPT, 5, **settings)


@pytest.mark.parametrize("name", ["temperature", "repetition_penalty", "logit_bias"])
def test_a_command_line_refuses_the_same(name: str) -> None:
    value = [[2, 1e39]] if name == "logit_bias" else 1e39
    with pytest.raises(UserError, match=f"{name} .*must be from"):
        AnswerConfig(checkpoint=None, **{name: value}).sampling()  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [True, 2.0, "2", -1, 21, [2]], ids=str)
def test_a_number_of_logprobs_is_a_whole_number(number: object) -> None:  # own; True and 2.0 were a TypeError of topk
    with pytest.raises(UserError, match="logprobs must be a whole number from 0 to 20; got"):
        Engine(five_tokens(), drafter="none").generate([PROMPT], 2, logprobs=number)  # type: ignore[arg-type]


@dataclass
class Part:
    """Settings below others."""

    rate: float = 1.0
    biases: list[list[float]] = field(default_factory=list)
    bounds: list[float] = field(default_factory=list)


@dataclass
class Settings:
    """Settings as a script has them."""

    seed: int = 0
    is_on: bool = True
    part: Part = field(default_factory=Part)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (Settings(part=Part(rate=math.nan)), "part.rate must be a finite number; got nan"),
        (Settings(part=Part(rate=math.inf)), "part.rate must be a finite number; got inf"),
        (
            Settings(part=Part(rate=1e300)),
            "part.rate must be a finite number; got 1e\\+300, which is infinite in float32",
        ),
        (Settings(seed=2**63), "seed must be a whole number below 2\\*\\*63; got one of 19 digits"),
        (Settings(seed=-(10**400)), "seed must be a whole number below 2\\*\\*63; got one of 401 digits"),
        (Settings(part=Part(bounds=[1.0, math.nan])), "part.bounds must hold numbers; got nan"),
    ],
    ids=["nan", "1e400", "1e300", "2**63", "-10**400", "nan in a list"],
)
def test_no_setting_of_a_command_line_is_a_number_that_none_can_be(settings: Settings, words: str) -> None:  # own
    """weight_decay=nan and block_size=2**63 were let in, and were seen after minutes of work."""
    with pytest.raises(UserError, match=f"^{words}"):
        check_numbers(settings)
    check_numbers(Settings(part=Part(biases=[[5, -math.inf]])))  # a ban


EXTREME = [
    {"logit_bias": {2: 1e20}}, {"logit_bias": {2: -1e20}}, {"repetition_penalty": 1e6}, {"repetition_penalty": 1e-6},
    {"logit_bias": {2: 1e20}, "repetition_penalty": 1e-6}, {"top_p": 1e-45}, {"top_p": 5e-324}, {"top_p": 1e-46},
    {"min_p": 1.0}, {"min_p": 1e-46}, {"top_k": 2**62}, {"top_k": 1, "top_p": 1e-45, "min_p": 1.0},
]  # fmt: skip


@pytest.mark.parametrize("settings", EXTREME, ids=str)
@pytest.mark.parametrize("temperature", [0.0, LEAST_TEMPERATURE, 1.0, 1e6], ids=str)
def test_all_that_is_let_in_stays_finite(settings: dict, temperature: float) -> None:  # own
    drafted = Engine(five_tokens(), drafter="lookup").generate([PROMPT], 10, temperature=temperature, **settings)[0]
    plain = Engine(five_tokens(), drafter="none").generate([PROMPT], 10, temperature=temperature, **settings)[0]
    assert drafted.ids == plain.ids and len(plain.ids) == 10


@pytest.mark.parametrize("top_p", [1e-46, 1e-45, 1e-30, 1e-9])
def test_the_smallest_share_is_the_likeliest_token(top_p: float) -> None:  # own
    scores_11V = torch.tensor([[[1.0, 3.0, 2.0, -math.inf]]])
    kept = keep_top_p(scores_11V, SamplingBatch.of([Sampling(1.0, top_p)], torch.device("cpu")).top_p_B11)
    assert kept.isfinite().tolist() == [[[False, True, False, False]]]


def test_min_p_of_one_keeps_all_that_are_likeliest() -> None:  # own
    equal_11V = torch.zeros(1, 1, 7)
    assert keep_min_p(equal_11V, torch.ones(1, 1, 1)).isfinite().all()
    two_11V = torch.tensor([[[1.0, 2.0, 2.0]]])
    assert keep_min_p(two_11V, torch.ones(1, 1, 1)).isfinite().tolist() == [[[False, True, True]]]


@pytest.mark.parametrize("settings", [{}, {"repetition_penalty": 1.2}, {"logit_bias": {1: 2.0}}], ids=str)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_base_that_overflows_float16_is_the_cause_that_is_named(settings: dict, temperature: float) -> None:  # own
    base: Base = random_base(dtype=torch.float16)
    base.model.get_output_embeddings().weight[5] = 6e4
    with pytest.raises(UserError, match="are not finite after . tokens: .* too large for float16"):
        Engine(base, drafter="none").generate([PROMPT], 5, temperature=temperature, **settings)


def test_settings_that_forbid_all_later_are_the_cause_that_is_named() -> None:  # own
    engine = Engine(five_tokens(eos=[3, 4]), drafter="none")
    with pytest.raises(UserError, match="no token is left to write after 3 tokens"):
        engine.generate([PROMPT], 9, logit_bias=dict.fromkeys(range(3), -math.inf), min_new_tokens=5)
