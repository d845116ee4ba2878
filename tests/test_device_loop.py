"""Steps on the device, as an engine takes them: the decoder's own answers, and what is left to the decoder."""

import logging
import random
from typing import Any

import pytest
import torch
from device_decodes import CALIBRATED, FORKED, SEARCHING, answers, any_settings, are_close, off_the_device, same
from kernel_bases import kernel_base, with_backend
from random_models import EAGLE_DESIGNS, FAMILIES, HEAD_DESIGNS, random_heads, random_prompts, random_tree

from euryale.decoding.config import AcceptConfig, TreeConfig
from euryale.decoding.device_step import DeviceStep
from euryale.decoding.engine import Engine
from euryale.decoding.record import Record
from euryale.decoding.tree.tree import chain
from euryale.heads.config import HeadsConfig


@pytest.fixture
def steps_are_counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many steps ran on the device, in its only entry."""
    count, run = [0], DeviceStep.__call__

    def counted(self: DeviceStep, *args: Any) -> None:
        count[0] += 1
        run(self, *args)

    monkeypatch.setattr(DeviceStep, "__call__", counted)
    return count


def test_random_decodes_equal_the_decoder_s_own_step(steps_are_counted: list[int]) -> None:
    """Greedy, sampled and mixed rows that come and go; trees, chains and plain decoding; ends by id, string, length
    and context; settings that no captured step has, in some rows of a batch."""
    rng = random.Random(7)
    for number in range(16):
        compare_on_a_random_model(rng, number)
    assert steps_are_counted[0] > 300


def compare_on_a_random_model(rng: random.Random, number: int) -> None:
    """Twelve answers, three at once, with steps on the device and without."""
    family = list(FAMILIES)[number % 4]
    base = kernel_base(family, "torch", seed=number, max_length=rng.choice([24, 128]), eos=rng.choice([None, 3]))
    designs = EAGLE_DESIGNS if number % 3 == 2 else SEARCHING if number % 2 else HEAD_DESIGNS
    heads = random_heads(rng.choice(designs), base, seed=number)
    tree: Any = rng.choice([None, chain(2), random_tree(rng, 4, 5, 9), TreeConfig("dynamic", rng.randint(2, 12))])
    rule = {3: "typical", 5: "rejection"}.get(number % 6, "exact")
    drafters = ["heads", "heads", "heads", "heads+lookup", "lookup"] if rule == "exact" else ["heads"]
    drafter = "none" if tree is None else drafters[number % len(drafters)]
    if drafter == "lookup":
        tree = TreeConfig("dynamic", 9)
    accept = AcceptConfig(rule, coupled=rng.random() < 0.8 and rule != "rejection")
    prompts = random_prompts(rng, 12, 29, longest=9)
    lengths = [min(rng.randint(1, 14), 23 - len(prompt)) for prompt in prompts]
    asked = prompts, lengths, [any_settings(rng, 29, number // 4, length) for length in lengths]
    engine = Engine(base, heads, drafter, tree, accept=accept)
    found = answers(engine, *asked)
    with off_the_device():
        expected = answers(engine, *asked)
    same(found, expected)
    # Rows come and go a step later, and a product of other rows may add in another order.
    assert all(are_close(one, other) for one, other in zip(found, expected, strict=True))
    if "lookup" not in drafter:  # which may exchange equally likely guesses
        assert [answer.accepted for answer in found] == [answer.accepted for answer in expected]
    assert len(found) == len(prompts)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", ["calibrated", "dynamic"])
def test_an_adaptive_tree_takes_steps_of_several_sizes_and_writes_the_same_text(
    name: str, temperature: float, steps_are_counted: list[int]
) -> None:
    """Rows come and go, and some steps are the decoder's own; every step is told with its own number of nodes."""
    base = kernel_base("llama", "torch", seed=8, num_hidden_layers=1)
    engine = Engine(base, random_heads(SEARCHING[0], base), "heads", TreeConfig(name, size="adaptive"), [CALIBRATED])
    plain = Engine(with_backend(base, "auto"), drafter="none")
    prompts = random_prompts(random.Random(2), 8, 29, longest=9)
    how: dict[str, Any] = {"temperature": temperature, "logprobs": None}
    settings = [how | ({"banned_tokens": [[28, 28]]} if number == 4 else {}) for number in range(8)]
    found, expected = (answers(each, prompts, [15] * 8, settings) for each in (engine, plain))
    same(found, expected)
    assert steps_are_counted[0] > 20
    assert {n for answer in found for n in answer.nodes} == {1, 3, 6}
    assert all(gain <= n for answer in found for gain, n in zip(answer.accepted, answer.nodes, strict=True))


@pytest.mark.parametrize("design", [SEARCHING[0], EAGLE_DESIGNS[0]], ids=lambda d: d.kind)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_logprobs_are_the_decoder_s_own_to_the_bit(
    dtype: torch.dtype, design: HeadsConfig, steps_are_counted: list[int]
) -> None:
    """Of a row alone; ends within a path, and steps that run after the end, leave no trace."""
    base = kernel_base("qwen2", "torch", seed=6, num_hidden_layers=1, dtype=dtype, eos=3)
    engine = Engine(base, random_heads(design, base), tree=FORKED, max_rows=1)
    prompts, stop = [[1, 2, 3], [5, 1]] * 3, ["b", "cd"]
    how: dict[str, Any] = {"temperature": 0.9, "seed": [*range(6)], "logprobs": 4, "min_new_tokens": 5}
    found = engine.generate(prompts, 12, stop=stop, **how)
    assert steps_are_counted[0] > 20
    with off_the_device():
        expected = engine.generate(prompts, 12, stop=stop, **how)
    same(found, expected)
    if design.kind != "eagle":  # whose attention adds over other slots, so that a guess may stand at another node
        assert [answer.logprobs for answer in found] == [answer.logprobs for answer in expected]
    assert [[t.token for t in answer.logprobs] for answer in found] == [answer.ids for answer in found]


def test_a_row_that_no_token_can_follow_ends_alone() -> None:
    """A weight that is NaN for one token: the row that writes it ends with an error, the other goes on."""
    base = kernel_base("llama", "torch", seed=4)
    prompts = [[1, 2, 3], [4, 5]]
    expected = [g.ids for g in Engine(base, drafter="none").generate(prompts, 10)]
    token = next(t for t in expected[0] if t not in prompts[1] + expected[1])
    base.model.get_input_embeddings().weight.data[token] = torch.nan  # unseen by the check of the forward
    scheduler = Engine(base, drafter="none").scheduler(2, 64)
    requests = [scheduler.submit(prompt, 10) for prompt in prompts]
    scheduler.run()
    broken, whole = (request.generation for request in requests)
    assert broken is not None and whole is not None
    assert broken.finish_reason == "error" and requests[0].error is not None
    assert "are not finite" in requests[0].error
    assert broken.ids == expected[0][: expected[0].index(token) + 1]
    assert whole.ids == expected[1]


def test_what_is_watched_or_follows_the_text_goes_through_the_decoder_s_own_step(
    steps_are_counted: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    """And the log says why, once."""
    base = kernel_base("llama", "torch", seed=4)
    with caplog.at_level(logging.INFO, logger="euryale.decoding"):
        watched = Engine(base, drafter="none").scheduler(1, 64)
        watched.submit([1, 2], 4, record=Record(wants_steps=True))
        watched.run()
        Engine(base, drafter="none").generate([[1, 2], [3], [4]], 4, top_k=3, min_new_tokens=2, banned_tokens=[[7, 8]])
        Engine(base, drafter="lookahead").generate([[1, 2]], 4)
        Engine(with_backend(base, "auto"), drafter="none").generate([[1, 2]], 4)
    assert [message for message in caplog.messages if "not captured" in message] == [
        "steps are not captured while the trees of an answer are recorded",
        "steps are not captured while a request asks for banned_tokens",
        "steps are not captured, because the drafter reads texts on the host",
    ]
    assert steps_are_counted == [0]
    Engine(base, drafter="none").generate([[1, 2]], 4)
    assert steps_are_counted == [5]  # the last is launched before the end of the one before it is known
