"""Every row is drawn by its own settings, from the set and distribution that others mean by them, and as alone."""

import itertools
import random
from collections.abc import Iterator

import pytest
import torch
from random_models import five_tokens, random_base, random_prompts
from test_scheduler import engine_with, known
from torch import Tensor
from transformers import GenerationConfig, MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from euryale.decoding.config import TreeConfig
from euryale.decoding.engine import Engine
from euryale.decoding.logits_processors import LogitsProcessors
from euryale.decoding.request import Generation
from euryale.decoding.sampling import Sampling
from euryale.decoding.sampling_batch import SamplingBatch, final_scores, keep_min_p, keep_top_k, keep_top_p, warp
from euryale.decoding.scheduler import Scheduler
from euryale.decoding.tree.tree import ROOT_ONLY, Shape
from euryale.errors import UserError

IGNORED = torch.zeros(40, 1, dtype=torch.long)  # these processors do not read the text
CPU = torch.device("cpu")


def random_scores() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(40, 50, generator=generator, dtype=torch.float64) * scale for scale in (0.1, 1.0, 5.0)]


def of_one(value: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(value, dtype=dtype)[None, None, None]


def drawn(logits_BNV: Tensor, sampling: Sampling, noise_BNV: Tensor | None) -> Tensor:
    """Every row by the same settings."""
    return final_scores(logits_BNV, SamplingBatch.of([sampling] * len(logits_BNV), CPU), noise_BNV).argmax(-1)


def test_greedy_takes_the_lowest_of_equal_logits() -> None:
    assert drawn(torch.tensor([[[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]]]), Sampling(), None).tolist() == [[1, 0]]


def test_sampling_is_the_argmax_of_scaled_logits_and_noise() -> None:
    logits, noise = torch.randn(2, 3, 7), torch.randn(2, 3, 7)
    targets = drawn(logits, Sampling(temperature=0.5), noise)
    for b in range(2):
        for n in range(3):
            scores = [x / 0.5 + y for x, y in zip(logits[b, n].tolist(), noise[b, n].tolist(), strict=True)]
            assert targets[b, n] == scores.index(max(scores))
    assert torch.equal(drawn(logits.bfloat16(), Sampling(1.0), noise * 0), logits.bfloat16().argmax(-1))


@pytest.mark.parametrize("top_p", [1e-6, 0.1, 0.5, 0.9, 0.99])
def test_top_p_keeps_the_set_that_transformers_keeps(top_p: float) -> None:
    for scores in random_scores():
        ours = keep_top_p(scores[None], of_one(top_p))[0]
        assert torch.equal(ours, TopPLogitsWarper(top_p)(IGNORED, scores))
        assert (ours.isfinite().sum(-1) >= 1).all()


@pytest.mark.parametrize("top_k", [1, 2, 7, 49, 50, 51, 1000])
def test_top_k_keeps_the_set_that_transformers_keeps(top_k: int) -> None:
    for scores in random_scores():
        for tied in (scores, scores.round()):  # equals of the last one stay
            ours = keep_top_k(tied[None], of_one(top_k, torch.long), top_k)[0]
            assert torch.equal(ours, TopKLogitsWarper(top_k)(IGNORED, tied))


@pytest.mark.parametrize("min_p", [1e-4, 0.05, 0.3, 1.0])
def test_min_p_keeps_the_set_that_transformers_keeps(min_p: float) -> None:
    for scores in random_scores():
        assert torch.equal(keep_min_p(scores[None], of_one(min_p))[0], MinPLogitsWarper(min_p)(IGNORED, scores))


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
            ours = warp(scores[None], SamplingBatch.of([Sampling(temperature, top_p, top_k, min_p or 0.0)], CPU))[0]
            assert torch.equal(ours, warpers(IGNORED, scores))
            num_kept |= set(ours.isfinite().sum(-1).tolist())
    assert {1, 2, 3, 20, 50} < num_kept


def test_top_p_is_the_smallest_set_that_reaches_the_share() -> None:
    scores = torch.tensor([[[0.5, 0.125, 0.25, 0.125]]], dtype=torch.float64).log()
    for top_p, kept in ((0.4, [0]), (0.5, [0]), (0.6, [0, 2]), (0.75, [0, 2]), (0.8, [0, 1, 2]), (0.99, [0, 1, 2, 3])):
        found = keep_top_p(scores, of_one(top_p - 1e-9)).isfinite()[0, 0].nonzero().flatten().tolist()
        assert found == kept, top_p


def test_tokens_outside_of_top_p_are_never_drawn() -> None:
    logits = torch.tensor([[[2.0, 1.9, -1.0, -1.0]]]).expand(1, 2000, 4)
    noise = -(-torch.rand(1, 2000, 4, generator=torch.Generator().manual_seed(0)).log()).log()
    assert set(drawn(logits, Sampling(1.0, top_p=0.8), noise).flatten().tolist()) == {0, 1}
    assert set(drawn(logits, Sampling(1.0), noise).flatten().tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_row_s_scores_among_others_are_those_it_has_alone_bit_by_bit(dtype: torch.dtype) -> None:
    """Filters that others ask for, and temperatures of others, leave no trace: not in a last bit, not in a tie."""
    samplings = [
        Sampling(),
        Sampling(0.7),
        Sampling(1.3, top_p=0.8),
        Sampling(1.0, top_k=3),
        Sampling(0.9, min_p=0.2),
        Sampling(0.3, 0.95, 7, 0.01),
        Sampling(1.0, top_k=1000),
    ]
    generator = torch.Generator().manual_seed(1)
    logits_BNV = torch.randn(len(samplings), 5, 60, generator=generator, dtype=torch.float64).to(dtype) * 3
    logits_BNV[:, :, 20:30] = logits_BNV[:, :, 10:20]  # ties
    noise_BNV = torch.randn(logits_BNV.shape, generator=generator)
    together = final_scores(logits_BNV, SamplingBatch.of(samplings, CPU), noise_BNV)
    for row, sampling in enumerate(samplings):
        part = slice(row, row + 1)
        noise = noise_BNV[part] if sampling.temperature else None
        alone = final_scores(logits_BNV[part], SamplingBatch.of([sampling], CPU), noise)
        assert torch.equal(together[part], alone.to(together.dtype)), sampling


WISHES: list[dict] = [
    {},
    {"temperature": 1.2},
    {"temperature": 0.6, "top_p": 0.8},
    {"temperature": 1.0, "top_k": 2, "presence_penalty": 0.7},
    {"repetition_penalty": 1.5, "banned_tokens": [[0, 1], 2]},
    {"temperature": 0.9, "min_p": 0.2, "logit_bias": {1: 2.0, 3: -1.5}, "min_new_tokens": 4},
]


def everybody(scheduler: Scheduler, rng: random.Random, num: int) -> Iterator[tuple]:
    """Prompts with any wishes come at any time; what was asked, and the answer."""
    prompts = random_prompts(rng, num, 5, longest=9)
    asked = [(p, rng.randint(4, 20), rng.randrange(2**63), rng.choice(WISHES)) for p in prompts]
    requests = []
    while len(requests) < num or not scheduler.is_idle:
        while len(requests) < num and rng.random() < 0.6:
            prompt, most, seed, wishes = asked[len(requests)]
            requests.append(scheduler.submit(prompt, most, seed, **wishes))
        scheduler.step()
    for what, request in zip(asked, requests, strict=True):
        yield *what, request.generation


@pytest.mark.parametrize("accept", ["exact", "rejection", "typical"])
@pytest.mark.parametrize(("drafter", "tree"), [("heads", "full"), ("heads", "dynamic"), ("lookahead", "dynamic")])
def test_rows_of_different_settings_are_answered_as_alone(drafter: str, tree: str, accept: str) -> None:
    engine = engine_with(drafter, tree, accept=accept)
    rng = random.Random(f"{drafter}{tree}{accept}")
    tried = set()
    for prompt, most, seed, wishes, found in everybody(engine.scheduler(4, 40), rng, 14):
        alone = engine.generate([prompt], most, seed=seed, **wishes)[0]
        # Which of several trees a temperature has is the scheduler's affair; here there is one.
        assert known(found) == known(alone) and found.is_lossless == alone.is_lossless
        tried.add(repr(wishes))
    assert len(tried) >= 4


def test_settings_that_are_not_named_are_the_scheduler_s() -> None:
    engine = engine_with("heads")
    scheduler = engine.scheduler(3, 40, temperature=1.1, top_p=0.9, frequency_penalty=0.3)
    requests = [scheduler.submit([1, 2], 15, 7, **wishes) for wishes in ({}, {"temperature": 0.0}, {"top_p": 0.5})]
    scheduler.run()
    common = {"temperature": 1.1, "top_p": 0.9, "frequency_penalty": 0.3}
    for request, wishes in zip(requests, ({}, {"temperature": 0.0}, {"top_p": 0.5}), strict=True):
        assert known(request.generation) == known(engine.generate([[1, 2]], 15, seed=7, **common | wishes)[0])  # type: ignore[arg-type]


def test_a_processed_row_among_others_has_the_logits_it_has_alone() -> None:
    """Penalties, biases and bans of one row leave no trace in another."""
    rng, generator = random.Random(5), torch.Generator().manual_seed(5)
    samplings = [Sampling(**wishes) for wishes in WISHES]
    texts = random_prompts(rng, len(samplings), 5, longest=9)
    logits_BNV = torch.randn(len(samplings), 1, 5, generator=generator, dtype=torch.float64)
    roots_BN = torch.tensor([text[-1:] for text in texts])
    together = LogitsProcessors(len(samplings), 5, CPU)
    for row, (sampling, text) in enumerate(zip(samplings, texts, strict=True)):
        together.add(row, sampling, text, [3])
    found_BNV = together.apply(logits_BNV, roots_BN, Shape.of_tree(ROOT_ONLY), texts)
    guessed_BNV = together.guess(logits_BNV, None)
    for row, (sampling, text) in enumerate(zip(samplings, texts, strict=True)):
        part, alone = slice(row, row + 1), LogitsProcessors(1, 5, CPU)
        alone.add(0, sampling, text, [3])
        expected = alone.apply(logits_BNV[part], roots_BN[part], Shape.of_tree(ROOT_ONLY), [text])
        assert torch.equal(found_BNV[part], expected)
        assert torch.equal(guessed_BNV[part], alone.guess(logits_BNV[part], None))


def test_however_many_settings_there_are_tables_are_made_once() -> None:
    scheduler = engine_with("none").scheduler(2, 40)
    for bias in range(30):
        scheduler.submit([1], 3, logit_bias={bias % 5: bias / 10}, frequency_penalty=bias / 20, repetition_penalty=1.5)
    scheduler.run()
    tables = [value for value in vars(scheduler._decoder._processors.tables).values() if isinstance(value, Tensor)]
    assert [tuple(table.shape) for table in tables] == [(2, 5)] * 3


def test_wishes_that_cannot_be_are_refused_when_they_are_submitted() -> None:
    scheduler = Engine(five_tokens(), drafter="none").scheduler(2, 40)
    for wishes, message in (
        ({"temperature": -1.0}, "temperature must be from 0"),
        ({"top_k": -2}, "top_k must be at least 0; got -2"),
        ({"logit_bias": {9: 1.0}}, "logit_bias must name tokens of this base, 0 to 4; got 9"),
        ({"min_new_tokens": 50}, "min_new_tokens must be at most max_new_tokens=10; got 50"),
    ):
        with pytest.raises(UserError, match=message):
            scheduler.submit([0], 10, **wishes)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="temprature"):
        scheduler.submit([0], 10, temprature=1.0)  # type: ignore[call-arg]
    assert scheduler.is_idle


@pytest.mark.parametrize("drafter", ["heads", "lookup", "lookahead"])
def test_a_row_whose_settings_forbid_every_token_ends_and_its_neighbours_go_on(drafter: str) -> None:
    engine = engine_with(drafter)
    scheduler = engine.scheduler(2, 40)
    first = scheduler.submit([1], 10)
    broken = scheduler.submit([2], 10, banned_tokens=[0, 1, 2, 4], min_new_tokens=5)
    later = scheduler.submit([2, 1], 10)  # in the place of the broken one
    scheduler.run()
    assert broken.error is not None and broken.generation is not None
    assert broken.error.startswith("no token is left to write after 1 tokens: logit_bias, banned_tokens")
    assert (broken.generation.finish_reason, broken.generation.ids) == ("error", [])
    for request, prompt in ((first, [1]), (later, [2, 1])):
        assert request.generation is not None and request.error is None
        assert request.generation.ids == engine.generate([prompt], 10)[0].ids


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_candidates_are_ranked_by_each_row_s_own_settings_and_more_of_them_are_right(
    temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The draft model is the base itself: without penalties all its guesses are right."""
    base = random_base("llama", 40, seed=6, dtype=torch.float64, max_length=96)
    twin = random_base("llama", 40, seed=6, dtype=torch.float64, max_length=96)
    engine = Engine(base, None, "model", TreeConfig("dynamic", 6), draft_base=twin)
    wishes = [{"repetition_penalty": 2.0}, {}, {"frequency_penalty": 1.0, "banned_tokens": [3, 4]}]

    def answers() -> list[Generation]:
        scheduler = engine.scheduler(3, 96, temperature=temperature)
        requests = [scheduler.submit([i, i + 1], 40, i, **wish) for i, wish in enumerate(wishes)]  # type: ignore[arg-type]
        scheduler.run()
        return [request.generation for request in requests if request.generation is not None]

    ranked = answers()
    for i, (answer, wish) in enumerate(zip(ranked, wishes, strict=True)):
        [alone] = engine.generate([[i, i + 1]], 40, temperature=temperature, seed=i, **wish)  # type: ignore[arg-type]
        assert (answer.ids, answer.accepted) == (alone.ids, alone.accepted)
    monkeypatch.setattr(LogitsProcessors, "guess", lambda self, scores, ids, is_next: scores)
    unranked = answers()
    assert [answer.ids for answer in ranked] == [answer.ids for answer in unranked]
    assert ranked[1].accepted == unranked[1].accepted, "a row without such settings"
    assert sum(answer.num_steps for answer in ranked) < sum(answer.num_steps for answer in unranked)
