"""Is every row drawn by its own settings, and is that what one Sampling for all would draw?"""

import random
from collections.abc import Iterator

import pytest
import torch
from random_models import FULL, HEAD_DESIGNS, five_tokens, random_base, random_heads, random_prompts
from test_scheduler import engine_with, known

from euryale.decoding.accept import AcceptConfig
from euryale.decoding.drafters.interface import Draft
from euryale.decoding.engine import Engine
from euryale.decoding.mixture import Mixture
from euryale.decoding.request import Generation
from euryale.decoding.sampling import Sampling
from euryale.decoding.scheduler import Scheduler
from euryale.decoding.tree.choose import TreeConfig
from euryale.errors import UserError

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
    handles = []
    while len(handles) < num or not scheduler.is_idle:
        while len(handles) < num and rng.random() < 0.6:
            prompt, most, seed, wishes = asked[len(handles)]
            handles.append(scheduler.submit(prompt, most, seed, **wishes))
        scheduler.step()
    for what, handle in zip(asked, handles, strict=True):
        yield *what, handle.generation


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
    handles = [scheduler.submit([1, 2], 15, 7, **wishes) for wishes in ({}, {"temperature": 0.0}, {"top_p": 0.5})]
    scheduler.run()
    common = {"temperature": 1.1, "top_p": 0.9, "frequency_penalty": 0.3}
    for handle, wishes in zip(handles, ({}, {"temperature": 0.0}, {"top_p": 0.5}), strict=True):
        assert known(handle.generation) == known(engine.generate([[1, 2]], 15, seed=7, **common | wishes)[0])  # type: ignore[arg-type]


def test_rows_that_agree_are_one_group_and_nothing_is_picked_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fast path, and its slow twin: the same rows, every one a group of its own."""
    base = random_base("llama", 23, seed=3, dtype=torch.float64, max_length=64)
    engine = Engine(base, random_heads(HEAD_DESIGNS[0], base), "heads", FULL, max_rows=3)
    prompts = random_prompts(random.Random(0), 7, 23, longest=20)
    wishes = {"temperature": 0.9, "top_p": 0.9, "repetition_penalty": 1.2, "presence_penalty": 0.5}
    picked: list[int] = []
    whole = Draft.of_rows
    monkeypatch.setattr(Draft, "of_rows", lambda self, rows: picked.append(len(rows)) or whole(self, rows))
    together = engine.generate(prompts, 20, seed=range(7), **wishes)  # type: ignore[arg-type]
    assert picked == []
    scheduler = engine.scheduler(3, 64)
    # A bias of nothing changes no score, and is another Sampling.
    handles = [scheduler.submit(p, 20, i, logit_bias={i: 0.0}, **wishes) for i, p in enumerate(prompts)]  # type: ignore[arg-type]
    scheduler.run()
    assert picked and [known(handle.generation) for handle in handles] == [known(one) for one in together]


def test_groups_follow_their_rows_when_rows_move() -> None:
    rng = random.Random(3)
    device = torch.device("cpu")
    kinds = [Sampling(), Sampling(1.0), Sampling(1.0, frequency_penalty=0.5), Sampling(0.5, presence_penalty=0.5)]
    mixture = Mixture(AcceptConfig(), 5, 7, device)
    rows: list[tuple[Sampling, list[int]]] = []
    for _ in range(300):
        if len(rows) < 5 and rng.random() < 0.5:
            place = rng.randrange(len(rows) + 1)
            rows[place : place + 1] = [(rng.choice(kinds), [rng.randrange(7)])]
            mixture.admit(place, *rows[place], [])
        elif rows:
            place = rng.randrange(len(rows))
            mixture.retire(place)
            rows[place] = rows[-1]
            rows.pop()
        for row in range(len(rows)):
            rows[row][1].append(rng.randrange(7))
            mixture.extend(row, rows[row][1][-1:])
        members = sorted(row for group in mixture._groups for row in group.members)
        assert members == list(range(len(rows)))
        for group in mixture._groups:
            for place, row in enumerate(group.members):
                sampling, text = rows[row]
                assert group.sampling == sampling
                if group.processors is not None:
                    assert group.processors._is_in_text_BV[place].nonzero().flatten().tolist() == sorted(set(text))
        assert sum(not group.members for group in mixture._groups) <= 1 + len(kinds)


def test_wishes_that_cannot_be_are_refused_when_they_are_submitted() -> None:
    scheduler = Engine(five_tokens(), drafter="none").scheduler(2, 40)
    for wishes, message in (
        ({"temperature": -1.0}, "temperature=-1.0 cannot be"),
        ({"top_k": -2}, "top_k=-2 cannot be"),
        ({"logit_bias": {9: 1.0}}, "logit_bias names token 9"),
        ({"min_new_tokens": 50}, "min_new_tokens=50 is more than max_new_tokens=10"),
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
    for handle, prompt in ((first, [1]), (later, [2, 1])):
        assert handle.generation is not None and handle.error is None
        assert handle.generation.ids == engine.generate([prompt], 10)[0].ids


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
        scheduler = engine.scheduler(3, 96, temperature)
        handles = [scheduler.submit([i, i + 1], 40, i, **wish) for i, wish in enumerate(wishes)]  # type: ignore[arg-type]
        scheduler.run()
        return [handle.generation for handle in handles if handle.generation is not None]

    ranked = answers()
    for i, (answer, wish) in enumerate(zip(ranked, wishes, strict=True)):
        [alone] = engine.generate([[i, i + 1]], 40, temperature, seed=i, **wish)  # type: ignore[arg-type]
        assert (answer.ids, answer.accepted) == (alone.ids, alone.accepted)
    monkeypatch.setattr(Mixture, "guess", None)
    unranked = answers()
    assert [answer.ids for answer in ranked] == [answer.ids for answer in unranked]
    assert ranked[1].accepted == unranked[1].accepted, "a row without such settings"
    assert sum(answer.num_steps for answer in ranked) < sum(answer.num_steps for answer in unranked)
