"""What people complained of this year in other engines, each as an equality: batches, drafts and settings together.

Acceptance and speed against context length, batch and kind of text are measured by infer/bench.py and infer/eval.py.
"""

import pytest
from random_models import FULL, HEAD_DESIGNS, five_tokens, random_base, random_heads

from euryale.base.base import Base
from euryale.decoding.engine import Engine
from euryale.decoding.request import Generation
from euryale.errors import UserError

PROMPTS = [[0], [1, 2], [3, 1, 2], [4] * 5, [0, 1, 2, 3, 4, 0, 1], [2, 2], [1] * 9, [3, 0]]


def engine(drafter: str, base: Base | None = None) -> Engine:
    base = base or five_tokens(eos=[4])
    if drafter == "heads":
        return Engine(base, random_heads(HEAD_DESIGNS[0], base), "heads", FULL)
    return Engine(base, drafter=drafter)


def ids(generations: list[Generation]) -> list[tuple[list[int], str, str]]:
    return [(generation.ids, generation.text, generation.finish_reason) for generation in generations]


@pytest.mark.parametrize("drafter", ["none", "heads", "lookup", "lookahead"])
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.5])
def test_eight_answers_together_are_eight_alone(drafter: str, temperature: float) -> None:
    """vllm#7880, batch invariance. Seeds of their own, prompts of different lengths."""
    asked = engine(drafter)
    together = asked.generate(PROMPTS, 24, temperature=temperature, seed=list(range(8)))
    alone = [asked.generate([prompt], 24, temperature=temperature, seed=seed)[0] for seed, prompt in enumerate(PROMPTS)]
    assert ids(together) == ids(alone)


SETTINGS: list[dict[str, object]] = [
    {"min_p": 0.2},
    {"min_p": 1.0},
    {"logit_bias": {3: 4.0, 1: -4.0}},
    {"logit_bias": {4: -100.0}},
    {"repetition_penalty": 1.7},
    {"presence_penalty": 1.5},
    {"frequency_penalty": 0.8},
    {"frequency_penalty": -0.8, "presence_penalty": 2.0},
    {"top_k": 2, "top_p": 0.9, "min_p": 0.05},
    {"banned_tokens": [2, [0, 1]]},
    {"min_new_tokens": 9},
    {"min_new_tokens": 9, "stop": "bc"},
    {"stop_ids": [3], "repetition_penalty": 1.2},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("drafter", ["heads", "lookup"])
def test_settings_are_honoured_with_drafts_as_without(drafter: str, settings: dict) -> None:
    """sglang and vllm left out min_p, bias and penalties in speculative decoding (vllm#16282)."""
    for temperature in (0.0, 1.0):
        drafted = engine(drafter).generate(PROMPTS[:4], 24, temperature=temperature, seed=5, **settings)
        plain = engine("none").generate(PROMPTS[:4], 24, temperature=temperature, seed=5, **settings)
        assert ids(drafted) == ids(plain)


@pytest.mark.parametrize("drafter", ["heads", "lookup", "lookahead"])
def test_one_request_may_go_without_drafts(drafter: str) -> None:
    """A switch for each request (vllm#18633), alongside requests with drafts and in the places of ended ones."""
    asked = engine(drafter, five_tokens())
    plain = engine("none", five_tokens()).generate(PROMPTS, 16, temperature=1.0, seed=list(range(8)))
    scheduler = asked.scheduler(3, 64, temperature=1.0)
    requests = [
        scheduler.submit(prompt, 16, seed=seed, drafter="none" if seed % 2 else None)
        for seed, prompt in enumerate(PROMPTS)
    ]
    scheduler.run()
    assert [request.ids for request in requests] == [generation.ids for generation in plain]
    for number, request in enumerate(requests):
        assert request.generation is not None
        if number % 2:
            assert request.generation.accepted == [1] * 16 and request.generation.undrafted_share == 1.0
    assert any(request.generation and request.generation.num_steps < 16 for request in requests[::2])


@pytest.mark.parametrize("rule", ["exact", "rejection", "typical"])
def test_a_request_without_drafts_is_lossless_under_any_rule(rule: str) -> None:
    base = five_tokens()
    asked = Engine(base, random_heads(HEAD_DESIGNS[0], base), "heads", FULL, accept=rule)
    [generation] = asked.generate([PROMPTS[2]], 16, temperature=1.0, seed=3, drafter="none")
    [plain] = Engine(base, drafter="none").generate([PROMPTS[2]], 16, temperature=1.0, seed=3)
    assert generation.ids == plain.ids and generation.is_lossless
    scheduler = asked.scheduler(2, 64, temperature=1.0)
    with_drafts, without = (scheduler.submit(PROMPTS[2], 16, seed=3, drafter=drafter) for drafter in (None, "none"))
    scheduler.run()
    assert without.ids == plain.ids and without.is_lossless and with_drafts.is_lossless == (rule != "typical")


def test_answers_and_streams_may_go_without_drafts_too() -> None:
    asked = engine("heads", five_tokens())
    [drafted], [plain] = (asked.generate([PROMPTS[4]], 16, drafter=drafter) for drafter in (None, "none"))
    assert drafted.ids == plain.ids and plain.accepted == [1] * len(plain.ids) != drafted.accepted
    stream = asked.stream(PROMPTS[4], 16, drafter="none")
    assert "".join(stream) == plain.text and stream.generation is not None
    assert stream.generation.nodes == [1] * len(plain.ids)


@pytest.mark.parametrize("drafter", ["heads", "", 5])
def test_a_request_chooses_no_other_drafter(drafter: object) -> None:
    for call in (engine("lookup").generate, engine("lookup").stream, engine("lookup").scheduler().submit):
        with pytest.raises(UserError, match='drafter of a request must be "none", or None'):
            call([1], 4, drafter=drafter)  # type: ignore[operator]


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3"])
def test_a_batch_of_different_settings_is_each_alone(family: str) -> None:
    """Rows of a batch with settings of their own (sglang#4039), in float32."""
    asked = engine("heads", random_base(family, vocab_size=5))
    scheduler = asked.scheduler(len(SETTINGS), 64)
    requests = [scheduler.submit([1, 2], 12, seed=9, temperature=1.0, **settings) for settings in SETTINGS]  # type: ignore[arg-type]
    scheduler.run()
    for request, settings in zip(requests, SETTINGS, strict=True):
        [alone] = asked.generate([[1, 2]], 12, temperature=1.0, seed=9, drafter="none", **settings)  # type: ignore[arg-type]
        assert request.generation is not None
        assert ids([request.generation]) == ids([alone])
