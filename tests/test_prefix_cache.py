"""Prompts that begin as earlier texts did: what was kept is used, and no text changes by a bit."""

import random

import pytest
import torch
from random_models import EAGLE_DESIGNS, FULL, HEAD_DESIGNS, random_base, random_heads

from euryale.decoding.engine import Engine
from euryale.decoding.prefix_cache import BLOCK, PrefixCache
from euryale.decoding.record import Record


def text_kv(tokens: list[int]) -> torch.Tensor:
    """Numbers by which a slot of a text is known: its token and how many came before."""
    numbers = [[token, place] for place, token in enumerate(tokens)]
    return torch.tensor(numbers, dtype=torch.float32).view(1, 1, 1, -1, 2)


def test_the_longest_known_beginning_is_written_and_a_token_is_left_to_read() -> None:
    rng = random.Random(0)
    text = [rng.randrange(9) for _ in range(3 * BLOCK + 5)]
    known = PrefixCache(100 * BLOCK)
    known.keep(text, text_kv(text))
    for length, expected in ((BLOCK, 0), (BLOCK + 1, 0), (BLOCK + 2, 1), (3 * BLOCK + 1, 2), (3 * BLOCK + 5, 3)):
        slots = torch.zeros(1, 1, 1, 4 * BLOCK, 2)
        assert known.fill(text[:length], slots) == expected * BLOCK
        assert torch.equal(slots[..., : expected * BLOCK, :], text_kv(text[: expected * BLOCK]))
        assert not slots[..., expected * BLOCK :, :].any()
    other = [*text[:BLOCK], 9, *text[BLOCK + 1 :]]
    assert known.fill(other, torch.zeros(1, 1, 1, 4 * BLOCK, 2)) == BLOCK
    assert known.fill([9, *text], torch.zeros(1, 1, 1, 4 * BLOCK, 2)) == 0  # the same blocks, but not at the beginning


def test_the_text_that_was_used_longest_ago_goes_first_from_its_end() -> None:
    known = PrefixCache(4 * BLOCK)
    texts = [[number] * (2 * BLOCK) for number in range(3)]
    slots = torch.zeros(1, 1, 1, 4 * BLOCK, 2)
    for text in texts[:2]:
        known.keep(text, text_kv(text))
    known.fill([*texts[0], 0, 0], slots)
    known.keep(texts[2], text_kv(texts[2]))
    assert [known.fill([*text, 0, 0], slots) for text in texts] == [2 * BLOCK, 0, 2 * BLOCK]
    known.keep([3] * BLOCK, text_kv([3] * BLOCK))
    assert [known.fill([*text, 0, 0], slots) for text in texts] == [BLOCK, 0, 2 * BLOCK]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("drafter", ["none", "heads", "lookup"])
def test_turns_of_conversations_are_answered_as_without_it(dtype: torch.dtype, drafter: str) -> None:
    """Each turn's prompt is the text so far and more; logprobs of all tokens are equal to the last bit."""
    base = random_base("llama", 40, hidden_size=64, seed=4, dtype=dtype, max_length=900)
    heads = random_heads(HEAD_DESIGNS[0], base) if drafter == "heads" else None
    engine, rng = Engine(base, heads, drafter, FULL if drafter == "heads" else None), random.Random(1)
    scheduler = engine.scheduler(3, 900, temperature=0.7, chunked_prefill=True)
    if not scheduler.remember_prefixes(2000):
        pytest.skip("this machine does not prove equal bits for this dtype")
    texts = [[rng.randrange(40) for _ in range(length)] for length in (150, 290, 420)]
    num_cached = []
    for turn in range(3):
        requests = [scheduler.submit(text, 30, turn, ignore_eos=True, record=Record(2)) for text in texts]
        scheduler.run()
        for text, request in zip(texts, requests, strict=True):
            alone = engine.generate([text], 30, temperature=0.7, seed=turn, ignore_eos=True, logprobs=2)[0]
            assert request.generation is not None and request.generation.ids == alone.ids
            assert request.generation.logprobs == alone.logprobs
            text += [*alone.ids, *(rng.randrange(40) for _ in range(40))]
        num_cached.append([request.num_cached for request in requests])
    assert num_cached[0] == [0, 0, 0]
    assert all(cached >= 2 * BLOCK for turn in num_cached[1:] for cached in turn)


def test_it_is_only_where_no_text_can_change() -> None:
    exact = random_base("llama", 40, hidden_size=64, seed=4, max_length=300)
    inexact = random_base("llama", 40, seed=4, dtype=torch.float64, max_length=300)
    assert not Engine(inexact, drafter="none").scheduler(2, 200, chunked_prefill=True).remember_prefixes(500)
    assert not Engine(exact, drafter="none").scheduler(2, 200).remember_prefixes(500)
    eagle = Engine(exact, random_heads(EAGLE_DESIGNS[0], exact), "eagle", FULL)
    assert not eagle.scheduler(2, 200, chunked_prefill=True).remember_prefixes(500)
    assert not Engine(exact, drafter="none").scheduler(2, 200, chunked_prefill=True).remember_prefixes(0)
