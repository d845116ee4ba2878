"""Every answer is the one that would have been written alone, whichever rows come and go."""

from __future__ import annotations

import random

import pytest
import torch
from plain_decoding import slow_ids
from random_models import EAGLE_DESIGNS, FULL, HEAD_DESIGNS, five_tokens, random_base, random_heads, random_prompts
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from euryale.base.base import Base
from euryale.decoding.config import DRAFTERS, DrafterConfig, TreeConfig
from euryale.decoding.engine import Engine
from euryale.decoding.kv_cache import KVCache
from euryale.decoding.request import Generation, Request
from euryale.decoding.scheduler import Scheduler
from euryale.decoding.tree.tree import DynamicTree, Tree, chain
from euryale.errors import UserError

BASE = five_tokens(max_length=80, eos=[3])
TREES: dict[str, Tree | DynamicTree | str] = {"full": FULL, "chain": chain(3), "dynamic": "dynamic"}


def engine_with(drafter: str, tree: str = "full", base: Base = BASE, accept: str = "exact") -> Engine:
    """This drafter over a random base, and random heads where it wants them."""
    design = EAGLE_DESIGNS[0] if drafter == "eagle" else HEAD_DESIGNS[0]
    heads = random_heads(design, base) if "heads" in drafter or drafter == "eagle" else None
    draft_base = random_base("llama", 5, seed=3, dtype=torch.float64, max_length=80) if drafter == "model" else None
    shape = TREES[tree] if drafter != "lookahead" else TreeConfig("dynamic", {"full": 31, "chain": 4}.get(tree))
    return Engine(base, heads, DrafterConfig(drafter, depth=4), shape, draft_base=draft_base, accept=accept)  # type: ignore[arg-type]


def known(generation: Generation | None) -> tuple[object, ...]:
    """All of a Generation but its seconds."""
    assert generation is not None
    return generation.ids, generation.text, generation.accepted, generation.finish_reason


def everybody_comes_and_goes(engine: Engine, temperature: float, rng: random.Random, num: int) -> int:
    """`num` prompts of any length, at any time, into few rows; returns the highest number that lived at once."""
    scheduler = engine.scheduler(rng.randint(2, 5), 40, temperature=temperature, top_p=0.95)
    prompts = random_prompts(rng, num, engine.base.vocab_size, longest=14)
    asked = [(p, rng.randint(1, 26), rng.randrange(2**63), rng.choice([None, "ab", "cc"])) for p in prompts]
    handles: list[Request] = []
    ended: list[Request] = []
    most = 0
    while len(ended) < num:
        while len(handles) < num and rng.random() < 0.7:
            prompt, most_new, seed, stop = asked[len(handles)]
            handles.append(scheduler.submit(prompt, most_new, seed, stop))
        ended += scheduler.step()
        most = max(most, scheduler.num_live)
    assert scheduler.is_idle and sorted(map(id, ended)) == sorted(map(id, handles))
    # All plain answers side by side, which is quicker: that they are those of a row alone is seen where drafter=none.
    plainly = Engine(engine.base, drafter="none").scheduler(num, 40, temperature=temperature, top_p=0.95)
    plains = [plainly.submit(*each) for each in asked]
    plainly.run()
    for handle, plain, (prompt, most_new, seed, stop) in zip(handles, plains, asked, strict=True):
        alone = engine.generate([prompt], most_new, temperature=temperature, top_p=0.95, seed=seed, stop=stop)[0]
        assert known(handle.generation) == known(alone)
        assert plain.generation is not None
        assert plain.generation.ids == alone.ids and plain.generation.text == alone.text
    return most


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("drafter", DRAFTERS)
def test_whoever_comes_and_goes_beside_a_row_its_answer_is_that_of_the_row_alone(
    drafter: str, tree: str, temperature: float
) -> None:
    rng = random.Random(f"{drafter}{tree}{temperature}")
    engine = engine_with(drafter, tree)
    assert everybody_comes_and_goes(engine, temperature, rng, 12) > 1, "the sample has rows side by side"


@pytest.mark.parametrize("rule", ["rejection", "typical"])
def test_rules_that_write_other_text_write_it_alike_in_company(rule: str) -> None:
    engine = engine_with("heads", accept=rule)
    prompts = random_prompts(random.Random(rule), 8, 5, longest=9)
    together = engine.generate(prompts, 20, temperature=1.0, seed=range(8))
    for seed, (prompt, generation) in enumerate(zip(prompts, together, strict=True)):
        assert known(generation) == known(engine.generate([prompt], 20, temperature=1.0, seed=seed)[0])


def test_float32_rows_are_those_of_plain_decoding_too() -> None:
    base = random_base("llama", 23, seed=3, max_length=64)
    engine = Engine(base, random_heads(HEAD_DESIGNS[0], base), "heads", FULL, max_rows=3)
    prompts = random_prompts(random.Random(0), 8, 23, longest=30)
    for temperature in (0.0, 0.9):
        answers = engine.generate(prompts, 20, temperature=temperature, seed=range(8))
        for seed, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            assert answer.ids == slow_ids(base, prompt, 20, temperature, seed)


@pytest.mark.parametrize("num_rows", [1, 2, 7])
def test_processors_and_stops_belong_to_their_own_row(num_rows: int) -> None:
    """min_new_tokens holds back what would end this row's answer, penalties count this row's text."""
    wishes = {"repetition_penalty": 1.3, "frequency_penalty": 0.4, "min_new_tokens": 6, "banned_tokens": [[0, 1], 2]}
    engine = engine_with("heads")
    rng = random.Random(num_rows)
    scheduler = engine.scheduler(num_rows, 60, temperature=1.0, **wishes)  # type: ignore[arg-type]
    prompts = random_prompts(rng, 12, 5, longest=9)
    stops = [rng.choice([(), (0,), (1, 4)]) for _ in prompts]
    handles = [scheduler.submit(p, 20, i, stop_ids=s) for i, (p, s) in enumerate(zip(prompts, stops, strict=True))]
    scheduler.run()
    for i, (handle, prompt, stop_ids) in enumerate(zip(handles, prompts, stops, strict=True)):
        [alone] = engine.generate([prompt], 20, temperature=1.0, seed=i, stop_ids=stop_ids, **wishes)  # type: ignore[arg-type]
        assert known(handle.generation) == known(alone) and len(alone.ids) >= 6
    assert len({handle.generation.finish_reason for handle in handles if handle.generation}) > 1


class LargeTensors(TorchDispatchMode):
    """Writes down every operation that makes, or copies into, as much as one row of one layer's keys and values."""

    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__()
        self._kv = scheduler._decoder.cache.kv
        self._memory = self._kv.untyped_storage().data_ptr()
        self._least = self._kv[0, :, 0].numel()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        is_view = func.is_view
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and not is_view and tensor.numel() >= self._least:
                is_of_cache = tensor.untyped_storage().data_ptr() == self._memory
                # An operation that writes a few slots returns the whole of what it wrote into.
                written = max((a.numel() for a in tree_leaves(args)[1:] if isinstance(a, torch.Tensor)), default=0)
                if not is_of_cache or written >= self._least:
                    self.found.append(str(func))
        return out


@pytest.mark.parametrize("drafter", ["none", "heads", "lookup"])
def test_steady_state_allocates_and_copies_nothing_of_the_size_of_a_row(drafter: str) -> None:
    """Ragged rows, paths of any length, rejected nodes: the cache stays where it is and only accepted nodes move."""
    base = random_base("llama", 5, seed=1, max_length=4096)
    heads = random_heads(HEAD_DESIGNS[0], base) if drafter == "heads" else None
    scheduler = Engine(base, heads, drafter, chain(3)).scheduler(4, 4000)
    cache = scheduler._decoder.cache
    for length in (2, 30, 7, 19):
        scheduler.submit([i % 5 for i in range(length)], 200)
    scheduler.step()
    with LargeTensors(scheduler) as large:
        for _ in range(12):
            scheduler.step()
    assert large.found == []
    assert len(set(cache.lengths)) > 1, "rows have lengths of their own"
    assert cache.kv.untyped_storage().data_ptr() == large._memory and cache is scheduler._decoder.cache


def test_the_counter_of_large_tensors_sees_a_copy_of_a_row() -> None:
    scheduler = engine_with("none").scheduler(3, 60)
    cache = scheduler._decoder.cache
    with LargeTensors(scheduler) as large:
        cache.kv[:, :, 1] = cache.kv[:, :, 2]
    assert large.found == ["aten.copy_.default"]
    with LargeTensors(scheduler) as large:
        cache.kv[:, :, :1].clone()
    assert large.found == ["aten.clone.default"]


def test_a_row_that_ends_is_replaced_by_who_waits_and_else_by_the_last_row() -> None:
    scheduler = engine_with("none", base=five_tokens()).scheduler(3, 100)
    handles = [scheduler.submit([i], most) for i, most in enumerate([9, 2, 20, 4, 20])]
    places: list[list[int]] = []
    while not scheduler.is_idle:
        scheduler.step()
        places.append([handles.index(handle) for handle in scheduler._live])
    # 3 takes the place of 1, and 4 that of 3. No request waits when 0 ends: the last row, 2, is moved there.
    assert places[0] == [0, 1, 2] and places[2] == [0, 3, 2] and places[6] == [0, 4, 2]
    assert places[9] == [2, 4] and places[-1] == [4]
    assert [len(handle.generation.ids) for handle in handles if handle.generation] == [9, 2, 20, 4, 20]


def test_pieces_of_rows_side_by_side_add_up_to_their_texts() -> None:
    engine = engine_with("heads")
    scheduler = engine.scheduler(2, 60, temperature=1.0)
    handles = [scheduler.submit(prompt, 30, seed=i, stop="ba") for i, prompt in enumerate([[0], [1, 2], [4, 4, 4]])]
    pieces: list[list[str]] = [[], [], []]
    while not scheduler.is_idle:
        scheduler.step()
        for handle, texts in zip(handles, pieces, strict=True):
            texts.append(handle.new_text())
    for handle, texts in zip(handles, pieces, strict=True):
        assert handle.generation is not None and "".join(texts) == handle.generation.text
    assert handles[0].new_text() == ""


def test_a_cancelled_answer_keeps_what_it_has_and_leaves_its_place() -> None:
    engine = engine_with("none", base=five_tokens())
    scheduler = engine.scheduler(2, 60)
    handles = [scheduler.submit([i], 20) for i in range(4)]
    scheduler.step()
    scheduler.cancel(handles[0])
    scheduler.cancel(handles[3])
    scheduler.run()
    scheduler.cancel(handles[1])  # has ended: nothing happens
    found = [handle.generation for handle in handles]
    assert [g and g.finish_reason for g in found] == ["cancelled", "length", "length", "cancelled"]
    for i, (generation, num) in enumerate(zip(found, [1, 20, 20, 0], strict=True)):
        assert generation is not None and generation.ids == slow_ids(engine.base, [i], 20)[:num]
    assert found[3] is not None and found[3].tau == 0.0


def test_what_cannot_be_is_refused_when_it_is_submitted() -> None:
    engine = engine_with("none")
    scheduler = engine.scheduler(2, 30, min_new_tokens=3, max_waiting=1)
    for wish, message in (
        (
            {"prompt": [0] * 20, "max_new_tokens": 11},
            "a prompt of 20 tokens and max_new_tokens=11 need 31, and the rows",
        ),
        ({"prompt": [0] * 80, "max_new_tokens": 1}, "the prompt has 80 tokens and the context"),
        ({"prompt": [], "max_new_tokens": 5}, "the prompt is empty"),
        ({"prompt": [7], "max_new_tokens": 5}, "token ids of .*; got 7 to 7"),
        ({"prompt": [0], "max_new_tokens": 0}, "max_new_tokens must be at least 1; got 0"),
        ({"prompt": [0], "max_new_tokens": 2}, "min_new_tokens must be at most max_new_tokens=2; got 3"),
        ({"prompt": [0], "max_new_tokens": 5, "seed": -1}, "seed must be .*; got -1"),
        ({"prompt": [0], "max_new_tokens": 5, "stop": ""}, "stop="),
    ):
        with pytest.raises(UserError, match=message):
            scheduler.submit(**wish)  # type: ignore[arg-type]
    assert scheduler.is_idle and scheduler.step() == []
    for _ in range(3):
        scheduler.submit([0], 20)
    with pytest.raises(UserError, match="all 2 rows of this scheduler are taken and max_waiting=1 prompts wait"):
        scheduler.submit([0], 20)
    scheduler.run()
    assert scheduler.submit([0], 20).generation is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_rows": 0}, "num_rows must be at least 1; got 0"),
        ({"row_tokens": 1}, "row_tokens must be at least 2; got 1"),
        ({"max_waiting": -1}, "max_waiting must be at least 0; got -1"),
        ({"temperature": -1.0}, "temperature must be from 0"),
        ({"logit_bias": {9: 1.0}}, "logit_bias must name tokens .*; got 9"),
    ],
)
def test_a_scheduler_that_cannot_be_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        engine_with("none").scheduler(**settings)
    with pytest.raises(UserError, match="max_rows must be at least 1; got 0"):
        Engine(BASE, drafter="none", max_rows=0)


def test_a_request_that_cannot_be_read_now_waits_on_and_its_neighbours_lose_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Reading a prompt may run out of memory. What was taken from the queue comes back to it, in its order."""
    for drafter in ("heads", "eagle", "lookup"):
        engine = engine_with(drafter)
        scheduler = engine.scheduler(3, 60)
        first = scheduler.submit([4, 4], 12)
        scheduler.step()
        others = [scheduler.submit(prompt, 12) for prompt in ([1], [2, 2, 1], [3, 0])]
        with monkeypatch.context() as broken:
            broken.setattr(KVCache, "begin", lambda self, num: (_ for _ in ()).throw(MemoryError("no room")))
            with pytest.raises(MemoryError, match="no room"):
                scheduler.step()
        assert scheduler.num_live == 1 and not scheduler.is_idle
        scheduler.cancel(others[1])
        scheduler.run()
        for request in (first, others[0], others[2]):
            assert known(request.generation) == known(engine.generate([request.prompt], 12)[0])


def test_a_request_knows_when_it_was_submitted_admitted_and_answered() -> None:
    scheduler = engine_with("heads").scheduler(1, 60)
    requests = [scheduler.submit([1, 2], 12) for _ in range(2)]
    assert requests[0].times.admitted is None and requests[0].times.first_token is None
    scheduler.run()
    for request in requests:
        submitted, admitted, first_token, ended = request.times
        assert admitted is not None and first_token is not None and ended is not None
        assert submitted < admitted < first_token <= ended
        assert request.generation is not None and request.generation.seconds == ended - submitted
    assert requests[1].times.admitted > requests[0].times.ended  # type: ignore[operator]
