"""Is a token drawn from the set and the distribution that everybody else means by these settings?"""

import inspect
import itertools
from dataclasses import fields

import pytest
import torch
from random_models import random_base
from torch import Tensor
from transformers import GenerationConfig, MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from euryale.decoding.engine import Engine
from euryale.decoding.sampling import MoreSampling, Sampling, draw, keep_min_p, keep_top_k, keep_top_p, warp
from euryale.errors import UserError

IGNORED = torch.zeros(40, 1, dtype=torch.long)  # these processors do not read the text


def random_scores() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(40, 50, generator=generator, dtype=torch.float64) * scale for scale in (0.1, 1.0, 5.0)]


def test_greedy_takes_the_lowest_of_equal_logits() -> None:
    assert draw(torch.tensor([[[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]]]), Sampling(), None).tokens_BN.tolist() == [[1, 0]]


def test_sampling_is_the_argmax_of_scaled_logits_and_noise() -> None:
    logits, noise = torch.randn(2, 3, 7), torch.randn(2, 3, 7)
    targets = draw(logits, Sampling(temperature=0.5), noise).tokens_BN
    for b in range(2):
        for n in range(3):
            scores = [x / 0.5 + y for x, y in zip(logits[b, n].tolist(), noise[b, n].tolist(), strict=True)]
            assert targets[b, n] == scores.index(max(scores))
    assert torch.equal(draw(logits.bfloat16(), Sampling(1.0), noise * 0).tokens_BN, logits.bfloat16().argmax(-1))


@pytest.mark.parametrize("top_p", [1e-6, 0.1, 0.5, 0.9, 0.99])
def test_top_p_keeps_the_set_that_transformers_keeps(top_p: float) -> None:
    for scores in random_scores():
        ours = keep_top_p(scores, top_p)
        assert torch.equal(ours, TopPLogitsWarper(top_p)(IGNORED, scores))
        assert (ours.isfinite().sum(-1) >= 1).all()


@pytest.mark.parametrize("top_k", [1, 2, 7, 49, 50, 51, 1000])
def test_top_k_keeps_the_set_that_transformers_keeps(top_k: int) -> None:
    for scores in random_scores():
        for tied in (scores, scores.round()):  # equals of the last one stay
            assert torch.equal(keep_top_k(tied, top_k), TopKLogitsWarper(top_k)(IGNORED, tied))


@pytest.mark.parametrize("min_p", [1e-4, 0.05, 0.3, 1.0])
def test_min_p_keeps_the_set_that_transformers_keeps(min_p: float) -> None:
    for scores in random_scores():
        assert torch.equal(keep_min_p(scores, min_p), MinPLogitsWarper(min_p)(IGNORED, scores))


def test_all_filters_together_equal_those_of_generate_in_its_order() -> None:
    """The list is the one that `generate` itself builds: temperature, top-k, top-p, min-p."""
    model = random_base("llama", 50).model
    num_kept = set()
    settings = itertools.product((0.3, 1.0, 2.0), (0, 3, 20), (0.5, 0.95, 1.0), (None, 0.1))
    for temperature, top_k, top_p, min_p in settings:
        config = GenerationConfig(
            do_sample=True, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p or None
        )
        warpers = model._get_logits_processor(generation_config=config, input_ids_seq_length=1, device="cpu")
        for scores in random_scores():
            scores = scores.float()
            ours = warp(scores, Sampling(temperature, top_p, top_k, min_p or 0.0))
            assert torch.equal(ours, warpers(IGNORED, scores))
            num_kept |= set(ours.isfinite().sum(-1).tolist())
    assert {1, 2, 3, 20, 50} < num_kept


def test_top_p_is_the_smallest_set_that_reaches_the_share() -> None:
    scores = torch.tensor([0.5, 0.125, 0.25, 0.125], dtype=torch.float64).log()
    for top_p, kept in ((0.4, [0]), (0.5, [0]), (0.6, [0, 2]), (0.75, [0, 2]), (0.8, [0, 1, 2]), (0.99, [0, 1, 2, 3])):
        assert keep_top_p(scores, top_p - 1e-9).isfinite().nonzero().flatten().tolist() == kept, top_p


def test_tokens_outside_of_top_p_are_never_drawn() -> None:
    logits = torch.tensor([[[2.0, 1.9, -1.0, -1.0]]]).expand(1, 2000, 4)
    noise = -(-torch.rand(1, 2000, 4, generator=torch.Generator().manual_seed(0)).log()).log()
    drawn = draw(logits, Sampling(1.0, top_p=0.8), noise).tokens_BN
    assert set(drawn.flatten().tolist()) == {0, 1}
    assert set(draw(logits, Sampling(1.0), noise).tokens_BN.flatten().tolist()) == {0, 1, 2, 3}


def test_a_score_that_is_no_number_is_found() -> None:
    for value in (float("nan"), float("inf")):
        logits = torch.zeros(1, 3, 5)
        logits[0, 1, 2] = value
        assert draw(logits, Sampling(), None).is_finite_BN.tolist() == [[True, False, True]]
        for sampling in (Sampling(1.0), Sampling(0.5, top_k=3), Sampling(1.0, 0.5), Sampling(1.0, min_p=0.1)):
            assert draw(logits, sampling, torch.zeros(1, 3, 5)).is_finite_BN.tolist() == [[True, False, True]]


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
        with pytest.raises(UserError, match=f"^{name}=.* cannot be. Give "):
            Sampling(**({"temperature": 1.0} | {name: value}))


def test_tokens_of_another_vocabulary_are_refused() -> None:
    for sampling in (Sampling(logit_bias={5: 1.0}), Sampling(banned_tokens=[[1, 5]]), Sampling(banned_tokens=[-1])):
        with pytest.raises(UserError, match="names token (5|-1), and this base knows 0 to 4"):
            sampling.check_tokens(5, 10)
    with pytest.raises(UserError, match="banned_tokens bans all 5 tokens"):
        Sampling(banned_tokens=[0, 1, 2, [3], 4, 4]).check_tokens(5, 10)
    with pytest.raises(UserError, match="min_new_tokens=11 is more than max_new_tokens=10"):
        Sampling(min_new_tokens=11).check_tokens(5, 10)
    Sampling(logit_bias={4: -1.0}, banned_tokens=[0, [4, 4]], min_new_tokens=10).check_tokens(5, 10)


def test_keywords_are_what_was_set_and_the_engine_takes_them_all() -> None:
    assert Sampling().keywords() == {}
    asked = {"temperature": 0.5, "top_k": 3, "logit_bias": {1: 2.0}, "min_new_tokens": 4}
    assert Sampling(**asked).keywords() == asked
    names = {item.name for item in fields(Sampling)}
    assert set(MoreSampling.__annotations__) | {"temperature", "top_p"} == names
    assert {"temperature", "top_p"} < set(inspect.signature(Engine.generate).parameters)
