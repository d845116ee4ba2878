"""Logprobs and step views: the base's own numbers, the same with and without drafts, and no change of the text."""

import math

import pytest
import torch
from random_models import FULL, HEAD_DESIGNS, five_tokens, random_base, random_heads

from euryale.base.base import Base
from euryale.decoding.config import DrafterConfig
from euryale.decoding.engine import Engine
from euryale.decoding.record import Record, StepView, TokenLogprob
from euryale.decoding.request import Generation
from euryale.errors import UserError

BASE = five_tokens(max_length=80, eos=[3])
PROMPT = [1, 4, 2, 0]
CLOSE = 1e-4  # transformers' norms and rotations are float32 even in a float64 base, and sums come in another order
SETTINGS = {"temperature": 0.9, "top_p": 0.9, "repetition_penalty": 1.3, "logit_bias": {2: -1.0}}


def engine_with(drafter: str, base: Base = BASE) -> Engine:
    heads = random_heads(HEAD_DESIGNS[0], base) if "heads" in drafter else None
    return Engine(base, heads, DrafterConfig(drafter, depth=4), FULL if drafter == "heads" else None)


def slow_logprobs(base: Base, ids: list[int]) -> torch.Tensor:
    """Of every token after the first, by transformers."""
    with torch.inference_mode():
        return base.model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)


def watched(engine: Engine, num_new: int = 24, **settings: object) -> tuple[Generation, list[StepView], Record]:
    record = Record(3, wants_prompt=True, wants_steps=True)
    scheduler = engine.scheduler(2, 60)
    request = scheduler.submit(PROMPT, num_new, 7, record=record, **settings)  # type: ignore[arg-type]
    steps = []
    while not scheduler.is_idle:
        scheduler.step()
        assert record.step is not None
        steps.append(record.step)
    assert request.generation is not None
    return request.generation, steps, record


@pytest.mark.parametrize("drafter", ["none", "heads", "lookup", "heads+lookup"])
def test_logprobs_are_those_of_the_base_before_any_setting(drafter: str) -> None:
    generation, _, record = watched(engine_with(drafter), **SETTINGS)
    text = PROMPT + generation.ids
    expected = slow_logprobs(BASE, text)
    assert record.prompt_logprobs[0] is None
    seen = [*record.prompt_logprobs[1:], *generation.logprobs]
    assert [item.token for item in seen if item] == text[1:]
    for item, log_p_V in zip(seen, expected, strict=True):
        assert item is not None
        values, ids = log_p_V.topk(3)
        assert [token for token, _ in item.top] == ids.tolist()
        found = torch.tensor([item.logprob, *(value for _, value in item.top)], dtype=log_p_V.dtype)
        torch.testing.assert_close(found, torch.cat([log_p_V[[item.token]], values]), atol=CLOSE, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logprobs_are_the_same_bits_with_and_without_drafts(dtype: torch.dtype) -> None:
    base = random_base("llama", 30, hidden_size=64, seed=4, dtype=dtype, max_length=120)
    found = [
        engine_with(drafter, base).generate([PROMPT] * 3, 40, temperature=0.8, seed=[1, 2, 3], logprobs=5)
        for drafter in ("none", "heads", "lookup")
    ]
    if not base.is_exact:
        pytest.skip("this machine does not prove equal bits for this dtype")
    for others in found[1:]:
        assert [g.logprobs for g in others] == [g.logprobs for g in found[0]]


@pytest.mark.parametrize("drafter", ["none", "heads", "lookup"])
def test_a_watched_text_is_the_same_and_its_steps_tell_it(drafter: str) -> None:
    engine = engine_with(drafter)
    alone = engine.generate([PROMPT], 24, seed=7, **SETTINGS)[0]  # type: ignore[arg-type]
    generation, steps, _ = watched(engine, **SETTINGS)
    assert generation.ids == alone.ids and generation.accepted == alone.accepted
    log_p, text = slow_logprobs(BASE, PROMPT + generation.ids), list(PROMPT)
    for step, num in zip(steps, generation.accepted, strict=True):
        path = [node for node in step.nodes if node.is_accepted]
        gained = [node.token for node in path[1:]] + ([] if step.bonus is None else [step.bonus.token])
        assert step.nodes[0].token == text[-1] and len(gained) == num
        for node, place in zip(path[1:], range(len(text) - 1, len(text) + num), strict=False):
            assert math.isclose(node.p, log_p[place, node.token].exp(), abs_tol=CLOSE)
        text += gained
        check_tree(step)
    assert text == PROMPT + generation.ids
    assert max(len(step.nodes) for step in steps) > 1 or drafter == "none"


def check_tree(step: StepView) -> None:
    assert step.nodes[0].parent == -1 and step.nodes[0].depth == step.nodes[0].rank == 0
    siblings = set()
    for place, node in enumerate(step.nodes[1:], start=1):
        assert 0 <= node.parent < place and node.depth == step.nodes[node.parent].depth + 1
        assert 0 <= node.p <= 1 and (not node.is_accepted or step.nodes[node.parent].is_accepted)
        siblings.add((node.parent, node.rank))
    assert len(siblings) == len(step.nodes) - 1
    if step.bonus is not None:
        assert step.bonus.parent == max(place for place, node in enumerate(step.nodes) if node.is_accepted)


def test_an_end_inside_a_path_cuts_its_record() -> None:
    """Every length cuts somewhere: a full tree over five tokens gains several tokens in a step."""
    engine = engine_with("heads")
    whole = watched(engine, 24, ignore_eos=True)
    cuts = 0
    for num_new in range(1, 24):
        generation, steps, _ = watched(engine, num_new, ignore_eos=True)
        assert len(generation.ids) == len(generation.logprobs) == num_new
        assert [item.token for item in generation.logprobs] == generation.ids == whole[0].ids[:num_new]
        assert (
            sum(node.is_accepted for node in steps[-1].nodes[1:]) + (steps[-1].bonus is not None)
            == (generation.accepted[-1])
        )
        cuts += steps[-1].bonus is None
    assert cuts > 3


def test_rows_with_and_without_records_change_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows come and go; each record holds its own row's numbers, and others cost nothing."""
    engine = engine_with("heads")
    scheduler = engine.scheduler(2, 60)
    records = [Record(2) if number % 2 else None for number in range(7)]
    requests = [
        scheduler.submit([1, number % 5, 2], 3 + 2 * number, record=record) for number, record in enumerate(records)
    ]
    scheduler.run()
    for number, (request, record) in enumerate(zip(requests, records, strict=True)):
        assert request.generation is not None
        alone = engine.generate([[1, number % 5, 2]], 3 + 2 * number, logprobs=2)[0]
        assert request.generation.ids == alone.ids
        expected: list[TokenLogprob] = alone.logprobs if record is not None else []
        assert [item.token for item in request.generation.logprobs] == [item.token for item in expected]
        for found, item in zip(request.generation.logprobs, expected, strict=True):
            assert math.isclose(found.logprob, item.logprob, abs_tol=1e-9)
    monkeypatch.setattr("euryale.decoding.record.ranked", None)
    engine.generate([PROMPT], 5)


@pytest.mark.parametrize("num", [-1, 21])
def test_more_ranked_tokens_than_there_may_be_are_refused(num: int) -> None:
    with pytest.raises(UserError, match=f"logprobs must be a whole number from 0 to 20; got {num}"):
        engine_with("none").generate([PROMPT], 4, logprobs=num)


def test_a_long_prompt_is_scored_whole() -> None:
    """Longer than one chunk of logits, and next to a shorter prompt in the same pass."""
    base = random_base("llama", 30, seed=4, dtype=torch.float64, max_length=400)
    prompts = [[(7 * place + row) % 30 for place in range(length)] for row, length in enumerate((200, 3, 130, 1))]
    scheduler = Engine(base, drafter="none").scheduler(4, 300)
    records = [Record(0, wants_prompt=True) for _ in prompts]
    for prompt, record in zip(prompts, records, strict=True):
        scheduler.submit(prompt, 2, record=record)
    scheduler.run()
    for prompt, record in zip(prompts[:3], records, strict=False):
        found = torch.tensor([item.logprob for item in record.prompt_logprobs[1:] if item], dtype=torch.float64)
        expected = slow_logprobs(base, prompt).gather(1, torch.tensor(prompt[1:])[:, None])[:, 0]
        torch.testing.assert_close(found, expected, atol=CLOSE, rtol=0)
    assert records[3].prompt_logprobs == [None] and len(records[3].logprobs) == 2
