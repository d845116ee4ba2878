"""Settings out of range are refused, and all doors take the same ones."""

from dataclasses import fields
from functools import partial

import pytest
from random_models import five_tokens

from euryale.decoding.config import AnswerConfig
from euryale.decoding.engine import Engine
from euryale.decoding.sampling import RANGES, Sampling
from euryale.errors import UserError
from euryale.server.schemas import SamplingFields


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("temperature", [-0.1, float("inf"), float("nan")]),
        ("top_p", [0.0, -1.0, 1.01, float("nan")]),
        ("top_k", [-1, 2.5, True]),
        ("min_p", [-0.1, 1.1, float("nan")]),
        ("repetition_penalty", [0.0, -1.0, float("inf"), float("nan")]),
        ("presence_penalty", [-2.1, 2.1, float("nan")]),
        ("frequency_penalty", [-2.1, 2.1, float("nan")]),
        ("logit_bias", [{0: float("inf")}, {0: float("nan")}, {"a": 1.0}]),
        ("banned_tokens", [["a"], [[]], [1.5], [[1, "b"]]]),
        ("min_new_tokens", [-1, 1.5]),
    ],
)
def test_a_setting_that_cannot_be_is_refused(name: str, values: list) -> None:
    for value in values:
        with pytest.raises(UserError, match=f"^{name} .*must be .*; got "):
            Sampling(**({"temperature": 1.0} | {name: value}))


def test_tokens_of_another_vocabulary_are_refused() -> None:
    for sampling in (Sampling(logit_bias={5: 1.0}), Sampling(banned_tokens=[[1, 5]]), Sampling(banned_tokens=[-1])):
        with pytest.raises(UserError, match="must name tokens of this base, 0 to 4; got (5|-1)"):
            sampling.check_tokens(5, 10)
    with pytest.raises(UserError, match="they forbid all 5"):
        Sampling(banned_tokens=[0, 1, 2, [3], 4, 4]).check_tokens(5, 10)
    with pytest.raises(UserError, match="min_new_tokens must be at most max_new_tokens=10; got 11"):
        Sampling(min_new_tokens=11).check_tokens(5, 10)
    Sampling(logit_bias={4: -1.0}, banned_tokens=[0, [4, 4]], min_new_tokens=10).check_tokens(5, 10)


def test_keywords_are_what_was_set_and_a_name_that_is_no_knob_is_refused() -> None:
    assert Sampling().keywords() == {}
    asked = {"temperature": 0.5, "top_k": 3, "logit_bias": {1: 2.0}, "min_new_tokens": 4}
    assert Sampling(**asked).keywords() == asked
    engine = Engine(five_tokens(), drafter="none")
    for door in (partial(engine.generate, [[1]]), partial(engine.stream, [1]), engine.scheduler):
        with pytest.raises(TypeError, match="top_q"):
            door(top_q=0.5)


def test_all_doors_share_defaults_and_ranges() -> None:
    assert AnswerConfig(checkpoint=None).sampling() == Sampling() == Sampling.of()
    shared = [knob.name for knob in fields(Sampling) if knob.name in SamplingFields.model_fields]
    assert len(shared) == 8, "OpenAI's and vLLM's names: all but banned_tokens and min_new_tokens, which is min_tokens"
    for name in shared:
        assert SamplingFields.model_fields[name].default is None, "what a request leaves out is the engine's default"
    for name, limits in RANGES.items():
        for number in (limits.least, limits.most):
            if not (limits.is_open and number == limits.least):
                Sampling.of(**{name: number})
