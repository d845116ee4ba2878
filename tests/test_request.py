"""Ends of an answer: an end-of-text id, a stop string, a length, the context; inside a path too."""

import random

import pytest
import torch
from plain_decoding import slow_ids
from random_models import FULL, engine_of, five_tokens, letter_tokenizer, random_base, random_prompts

from euryale.decoding.engine import Engine
from euryale.decoding.request import Generation, Request, StopConditions
from euryale.decoding.tree.tree import ROOT_ONLY, Tree
from euryale.errors import UserError

PROMPT = [0, 3, 1]


def check_sums(generation: Generation) -> None:
    assert sum(generation.accepted) == len(generation.ids) and min(generation.accepted) >= 1
    assert generation.num_steps == len(generation.accepted)
    assert generation.tau == len(generation.ids) / generation.num_steps
    assert generation.seconds > 0


def test_the_full_tree_accepts_three_tokens_a_step() -> None:
    """What the tests below rely on: their endings lie inside a path."""
    base = five_tokens()
    generation = engine_of(base).generate([PROMPT], max_new_tokens=30)[0]
    assert generation.accepted == [3] * 10 and len(set(generation.ids)) > 3
    assert generation.ids == slow_ids(base, PROMPT, 30)
    check_sums(generation)


def test_the_answer_ends_at_max_new_tokens_inside_a_path() -> None:
    engine = engine_of(five_tokens())
    whole = engine.generate([PROMPT], max_new_tokens=12)[0].ids
    for num in range(1, 12):
        generation = engine.generate([PROMPT], max_new_tokens=num)[0]
        assert generation.ids == whole[:num] and generation.finish_reason == "length"
        check_sums(generation)


@pytest.mark.parametrize("eos", [2, [2], [4, 2]])
def test_end_of_text_inside_a_path_ends_the_answer(eos: int | list[int]) -> None:
    base = five_tokens(eos=eos)
    assert base.eos_ids == (tuple(eos) if isinstance(eos, list) else (eos,))
    rng = random.Random(0)
    places = set()
    for prompt in random_prompts(rng, 12, 5, longest=6):
        generation = engine_of(base).generate([prompt], max_new_tokens=40)[0]
        assert generation.ids == slow_ids(base, prompt, 40)
        check_sums(generation)
        if generation.finish_reason == "eos":
            assert generation.ids[-1] in base.eos_ids and not set(generation.ids[:-1]) & set(base.eos_ids)
            assert generation.text == base.tokenizer.decode(generation.ids[:-1])
            places.add(generation.accepted[-1])
    assert places == {1, 2, 3}, "the sample ends at every place of a path"


def test_a_stop_string_inside_a_path_ends_the_answer_before_it() -> None:
    engine = engine_of(five_tokens())
    whole = engine.generate([PROMPT], max_new_tokens=30)[0]
    places = set()
    for start in range(20):
        stop = whole.text[start : start + 3]
        generation = engine.generate([PROMPT], max_new_tokens=30, stop=[stop, "z"])[0]
        found = whole.text.index(stop)
        assert generation.text == whole.text[:found] and generation.finish_reason == "stop"
        assert generation.ids == whole.ids[: found + 3], "the ids hold the stop string, the text does not"
        check_sums(generation)
        places.add(generation.accepted[-1])
    assert places == {1, 2, 3}


def test_a_stop_id_inside_a_path_ends_the_answer_and_is_not_shown() -> None:
    for stop in (None, "zz"):  # with a stop string the text is made while it grows, without one at the end
        places = set()
        for prompt in random_prompts(random.Random(0), 12, 5, longest=6):
            engine = engine_of(five_tokens(eos=3))
            whole = engine.generate([prompt], max_new_tokens=40, ignore_eos=True)[0]
            generation = engine.generate([prompt], max_new_tokens=40, stop_ids=[2, 4], stop=stop)[0]
            ends = [at for at, token in enumerate(whole.ids) if token in (2, 3, 4)]
            if not ends:
                continue
            assert generation.ids == whole.ids[: ends[0] + 1] and generation.text == whole.text[: ends[0]]
            assert generation.finish_reason == ("eos" if generation.ids[-1] == 3 else "stop")
            check_sums(generation)
            places.add(generation.accepted[-1])
        assert places == {1, 2, 3}


def test_a_stop_string_that_is_a_special_token_stops_by_its_id() -> None:
    """Its text is never shown, so as a string it would never match."""
    base = five_tokens(bos_id=2)
    base.tokenizer.add_special_tokens({"bos_token": "c"})
    reasons = []
    for prompt in random_prompts(random.Random(1), 5, 5, longest=6):
        by_string = engine_of(base).generate([prompt], max_new_tokens=40, stop=["c"])[0]
        by_id = engine_of(base).generate([prompt], max_new_tokens=40, stop_ids=[2])[0]
        assert by_string.ids == by_id.ids and by_string.text == by_id.text
        assert by_string.finish_reason == by_id.finish_reason == ("stop" if 2 in by_id.ids else "length")
        reasons.append(by_id.finish_reason)
    assert reasons.count("stop") >= 3


def test_end_of_text_may_be_ignored_and_held_back() -> None:
    base = five_tokens(eos=[1, 2])
    plain = Engine(five_tokens(), drafter="none").generate([PROMPT], max_new_tokens=20)[0]
    ignored = engine_of(base).generate([PROMPT], max_new_tokens=20, ignore_eos=True)[0]
    assert ignored.ids == plain.ids and ignored.finish_reason == "length" and set(plain.ids) & {1, 2}
    for num in (1, 2, 5, 8):
        late = engine_of(base).generate([PROMPT], max_new_tokens=40, min_new_tokens=num)[0]
        assert late.finish_reason == "eos" and len(late.ids) > num and not set(late.ids[:num]) & {1, 2}
        stopped = engine_of(five_tokens()).generate([PROMPT], max_new_tokens=40, min_new_tokens=num, stop_ids=[1, 2])[0]
        assert stopped.ids == late.ids and stopped.finish_reason == "stop"


def test_end_of_text_comes_before_stop_and_stop_before_length() -> None:
    base = five_tokens()
    whole = engine_of(base).generate([PROMPT], max_new_tokens=9)[0]
    last = whole.text[8]
    first = whole.text.index(last)
    assert engine_of(base).generate([PROMPT], max_new_tokens=first + 1, stop=last)[0].finish_reason == "stop"
    base.eos_ids = (whole.ids[8],)
    assert engine_of(base).generate([PROMPT], max_new_tokens=first + 1, stop=last)[0].finish_reason == "eos"


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_a_full_context_ends_the_answer(family: str) -> None:
    base = random_base(family, 5, seed=8, dtype=torch.float64, max_length=24)
    engine = engine_of(base)
    for length in (1, 10, 21, 22, 23):
        prompt = [i % 5 for i in range(length)]
        for num, reason in ((24 - length, "length"), (25 - length, "context"), (100, "context")):
            generation = engine.generate([prompt], max_new_tokens=num)[0]
            assert (len(generation.ids), generation.finish_reason) == (24 - length, reason)
            assert generation.ids == slow_ids(base, prompt, 24 - length)


@pytest.mark.parametrize("tree", [FULL, ROOT_ONLY], ids=["full", "root"])
def test_a_sliding_window_is_where_the_context_ends(tree: Tree) -> None:
    base = random_base("mistral", 5, seed=8, dtype=torch.float64, max_length=64, sliding_window=16)
    assert base.max_length == 16
    generation = engine_of(base, tree).generate([[1, 2, 3]], max_new_tokens=50)[0]
    assert generation.finish_reason == "context" and len(generation.ids) == 13
    assert generation.ids == slow_ids(base, [1, 2, 3], 13)
    with pytest.raises(UserError, match="the prompt has 16 tokens and the context of random-mistral ends at 16"):
        engine_of(base).generate([[1] * 16])


def test_a_row_takes_tokens_up_to_the_first_that_ends_it() -> None:
    def row(max_ids: int = 9, stop: tuple[str, ...] = ()) -> Request:
        conditions = StopConditions(stop, stop_ids=(8, 6), eos_ids=(7, 6))
        return Request([0], letter_tokenizer(26), stop=conditions, max_ids=max_ids, reason_at_max="context")

    going = row()
    going.take([0, 1], 4)
    going.take([2], 4)
    assert (going.ids, going.accepted, going.finish_reason) == ([0, 1, 2], [2, 1], None)
    for ended, tokens, ids, reason in (
        (row(), [4, 7, 7, 5], [4, 7], "eos"),
        (row(), [4, 8, 7, 5], [4, 8], "stop"),
        (row(), [4, 6], [4, 6], "eos"),
        (row(max_ids=3), [1, 2, 3, 4], [1, 2, 3], "context"),
        (row(stop=("bc",)), [0, 1, 2, 3], [0, 1, 2], "stop"),
        (row(max_ids=2, stop=("h",)), [0, 7], [0, 7], "eos"),
        (row(max_ids=2, stop=("b",)), [0, 1], [0, 1], "stop"),
        (row(max_ids=2), [0, 8], [0, 8], "stop"),
    ):
        ended.take(tokens, 4)
        assert (ended.ids, ended.accepted, ended.finish_reason) == (ids, [len(ids)], reason)
        assert ended.text_ids == (ids[:-1] if ids[-1] in (6, 7, 8) else ids)
