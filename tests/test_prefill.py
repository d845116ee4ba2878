"""Long prompts read chunk by chunk between the steps of others: none stalls, and every text is as it would be alone."""

import random

import pytest
import torch
from random_models import EAGLE_DESIGNS, FULL, HEAD_DESIGNS, random_base, random_heads

from euryale.decoding.config import DrafterConfig
from euryale.decoding.engine import Engine
from euryale.decoding.prefill import CHUNK
from euryale.decoding.record import Record

BASE = random_base("llama", 30, seed=4, dtype=torch.float64, max_length=600, eos=3)


def engine_with(drafter: str) -> Engine:
    design = EAGLE_DESIGNS[0] if drafter == "eagle" else HEAD_DESIGNS[0]
    heads = random_heads(design, BASE) if drafter in ("heads", "eagle", "heads+lookup") else None
    draft_base = random_base("llama", 30, seed=3, dtype=torch.float64, max_length=600) if drafter == "model" else None
    return Engine(BASE, heads, DrafterConfig(drafter, depth=4), FULL, draft_base=draft_base)


def prompt_of(rng: random.Random, length: int) -> list[int]:
    return [rng.randrange(4, 30) for _ in range(length)]


@pytest.mark.parametrize("drafter", ["none", "heads", "eagle", "heads+lookup", "lookup", "model"])
@pytest.mark.parametrize("num_rows", [1, 3])
def test_long_and_short_prompts_that_come_and_go_are_answered_as_alone(drafter: str, num_rows: int) -> None:
    """Lengths around one and two chunks; some are cancelled while they are read."""
    engine, rng = engine_with(drafter), random.Random(num_rows)
    lengths = [2, CHUNK, 300, CHUNK + 1, 5, CHUNK + 2, 2 * CHUNK + 1, 1, 2 * CHUNK + 2, 20]
    asked = [(prompt_of(rng, length), rng.randint(2, 9), rng.randrange(2**40)) for length in lengths]
    scheduler = engine.scheduler(num_rows, 320, temperature=0.8, chunked_prefill=True)
    requests, doomed = [], []
    while len(requests) < len(asked) or not scheduler.is_idle:
        if len(requests) < len(asked) and rng.random() < 0.6:
            requests.append(scheduler.submit(*asked[len(requests)]))
            if rng.random() < 0.3:
                doomed.append(scheduler.submit(prompt_of(rng, 290), 4))
        scheduler.step()
        if doomed and rng.random() < 0.4:
            scheduler.cancel(doomed.pop())
    for (prompt, num_new, seed), request in zip(asked, requests, strict=True):
        alone = engine.generate([prompt], num_new, temperature=0.8, seed=seed)[0]
        assert request.generation is not None and request.generation.ids == alone.ids
        assert request.generation.accepted == alone.accepted


def test_an_answer_goes_on_while_a_long_prompt_is_read() -> None:
    rng = random.Random(0)
    scheduler = engine_with("none").scheduler(2, 600, chunked_prefill=True)
    short = scheduler.submit([5, 6], 20, ignore_eos=True)
    scheduler.step()
    record = Record(0, wants_prompt=True)
    prompt = prompt_of(rng, 4 * CHUNK)
    long = scheduler.submit(prompt, 2, record=record)
    for num in range(2, 5):
        scheduler.step()
        assert len(short.ids) == num and not long.ids and long.times.admitted is None
    scheduler.step()
    assert len(long.ids) == 1 and len(short.ids) == 5
    assert [item.token for item in record.prompt_logprobs if item] == prompt[1:]


def test_a_short_prompt_passes_a_long_one_and_a_long_one_keeps_its_place() -> None:
    rng = random.Random(1)
    scheduler = engine_with("none").scheduler(2, 600, chunked_prefill=True)
    long = scheduler.submit(prompt_of(rng, 3 * CHUNK), 2, ignore_eos=True)
    shorts = [scheduler.submit([5 + n], 1, ignore_eos=True) for n in range(20)]
    for _ in range(3):
        scheduler.step()
    assert long.times.admitted is not None and sum(s.generation is not None for s in shorts) == 3


def test_a_prompt_whose_reading_failed_still_waits_and_is_read_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, rng = engine_with("heads"), random.Random(2)
    prompt = prompt_of(rng, 3 * CHUNK)
    scheduler = engine.scheduler(2, 600, chunked_prefill=True)
    request = scheduler.submit(prompt, 6)
    scheduler.step()

    def fail(self: object) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr("euryale.decoding.prefill.PromptReader.read_chunk", fail)
        with pytest.raises(RuntimeError):
            scheduler.step()
    scheduler.run()
    assert request.generation is not None
    assert request.generation.ids == engine.generate([prompt], 6)[0].ids
