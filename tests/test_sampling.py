"""Settings out of range are refused, and all doors take the same ones."""

import inspect
from dataclasses import fields

import pytest

from euryale.decoding.engine import Engine
from euryale.decoding.sampling import MoreSampling, Sampling
from euryale.errors import UserError


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


def test_keywords_are_what_was_set_and_the_engine_takes_them_all() -> None:
    assert Sampling().keywords() == {}
    asked = {"temperature": 0.5, "top_k": 3, "logit_bias": {1: 2.0}, "min_new_tokens": 4}
    assert Sampling(**asked).keywords() == asked
    names = {item.name for item in fields(Sampling)}
    assert set(MoreSampling.__annotations__) | {"temperature", "top_p"} == names
    assert {"temperature", "top_p"} < set(inspect.signature(Engine.generate).parameters)
