"""The step on the device: the decoder's own answers, without a value that the host reads."""

import logging
import random
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
from device_decodes import SEARCHING, any_settings, are_close, submit
from kernel_bases import kernel_base, with_backend
from random_models import FAMILIES, HEAD_DESIGNS, random_heads, random_prompts, random_tree
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from euryale.base.base import Base
from euryale.decoding.accept import AcceptConfig
from euryale.decoding.device_loop import DeviceLoop
from euryale.decoding.device_state import DeviceState, StepKind
from euryale.decoding.device_step import DeviceStep
from euryale.decoding.drafters.heads import HeadsDrafter
from euryale.decoding.drafters.heads_lookup import HeadsLookupDrafter
from euryale.decoding.drafters.interface import Drafter
from euryale.decoding.drafters.lookup import LookupDrafter
from euryale.decoding.drafters.none import NoDrafter
from euryale.decoding.engine import Engine
from euryale.decoding.record import Record
from euryale.decoding.request import Generation
from euryale.decoding.sampling import Sampling
from euryale.decoding.sampling_batch import Asked, columns_of
from euryale.decoding.token_tables import TokenTables
from euryale.decoding.tree.choose import TreeConfig
from euryale.decoding.tree.tree import DynamicTree, Tree, chain
from euryale.decoding.tree_pass import TreePass
from euryale.heads.config import HeadsConfig
from euryale.heads.heads import Heads

FORKED = Tree.from_paths([(0,), (0, 0), (1,), (0, 1), (0, 0, 2)])
TREES: tuple[Tree | DynamicTree | None, ...] = (None, chain(3), FORKED, DynamicTree(7, 3))
NAMES = ["none", "chain", "forked", "dynamic"]
READS = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "unique", "lift_fresh")


def drafter_of(base: Base, heads: Heads, tree: Tree | DynamicTree | None) -> Drafter:
    return NoDrafter(base) if tree is None else HeadsDrafter(base, heads, tree)


def lookup_of(base: Base, heads: Heads) -> Drafter:
    return LookupDrafter(base, DynamicTree(9, 4))


def heads_lookup_of(base: Base, heads: Heads) -> Drafter:
    return HeadsLookupDrafter(base, HeadsDrafter(base, heads, FORKED), 3)


@pytest.fixture
def steps_are_counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many steps ran on the device, in its only entry."""
    count, run = [0], DeviceStep.__call__

    def counted(self: DeviceStep, *args: Any) -> None:
        count[0] += 1
        run(self, *args)

    monkeypatch.setattr(DeviceStep, "__call__", counted)
    return count


def same(found: list[Generation], expected: list[Generation]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one.ids, one.text, one.finish_reason, one.seed) == (
            other.ids,
            other.text,
            other.finish_reason,
            other.seed,
        )


def test_random_decodes_equal_the_decoder_s_own_step(
    steps_are_counted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Greedy, sampled and mixed rows that come and go; trees, chains and plain decoding; ends by id, string, length
    and context; settings that no captured step has, in some rows of a batch."""
    rng = random.Random(7)
    for number in range(16):
        compare_on_a_random_model(rng, number, monkeypatch)
    assert steps_are_counted[0] > 300


def compare_on_a_random_model(rng: random.Random, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve answers, three at once, with steps on the device and without."""
    family = list(FAMILIES)[number % 4]
    base = kernel_base(family, "torch", seed=number, max_length=rng.choice([24, 128]), eos=rng.choice([None, 3]))
    designs = SEARCHING if number % 2 else HEAD_DESIGNS
    heads = random_heads(rng.choice(designs), base, seed=number)
    tree: Any = rng.choice([None, chain(2), random_tree(rng, 4, 5, 9), TreeConfig("dynamic", rng.randint(2, 12))])
    drafter = "none" if tree is None else ["heads", "heads", "heads", "heads+lookup", "lookup"][number % 5]
    if drafter == "lookup":
        tree = TreeConfig("dynamic", 9)
    accept = AcceptConfig(coupled=rng.random() < 0.8)
    prompts = [
        (prompt, length, any_settings(rng, 29, number // 4, length))
        for prompt in random_prompts(rng, 12, 29, longest=9)
        for length in [min(rng.randint(1, 14), 23 - len(prompt))]
    ]
    answers = []
    for is_on_device in (True, False):
        with monkeypatch.context() as patch:
            if not is_on_device:
                patch.setattr(DeviceLoop, "why_not", staticmethod(lambda *args: "it is compared with"))
            scheduler = Engine(base, heads, drafter, tree, accept=accept).scheduler(3, 24)
            requests = []
            for prompt, length, how in prompts:
                requests.append(submit(scheduler, prompt, length, how))
                scheduler.step()
            scheduler.run()
            answers.append([request.generation for request in requests if request.generation is not None])
    same(*answers)
    # Rows come and go a step later, and a product of other rows may add in another order.
    assert all(are_close(one, other) for one, other in zip(*answers, strict=True))
    if "lookup" not in drafter:  # which may exchange equally likely guesses
        assert [a.accepted for a in answers[0]] == [a.accepted for a in answers[1]]
    assert len(answers[0]) == len(prompts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_logprobs_are_the_decoder_s_own_to_the_bit(
    dtype: torch.dtype, steps_are_counted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a row alone; ends within a path, and steps that run after the end, leave no trace."""
    base = kernel_base("qwen2", "torch", seed=6, num_hidden_layers=1, dtype=dtype, eos=3)
    engine = Engine(base, random_heads(SEARCHING[0], base), tree=FORKED, max_rows=1)
    prompts, stop = [[1, 2, 3], [5, 1]] * 3, ["b", "cd"]
    how: dict[str, Any] = {"temperature": 0.9, "seed": [*range(6)], "logprobs": 4, "min_new_tokens": 5}
    found = engine.generate(prompts, 12, stop=stop, **how)
    assert steps_are_counted[0] > 20
    monkeypatch.setattr(DeviceLoop, "why_not", staticmethod(lambda *args: "it is compared with"))
    expected = engine.generate(prompts, 12, stop=stop, **how)
    same(found, expected)
    assert [answer.logprobs for answer in found] == [answer.logprobs for answer in expected]
    assert [[t.token for t in answer.logprobs] for answer in found] == [answer.ids for answer in found]


def captured(step: DeviceStep, state: DeviceState, kv: torch.Tensor, kind: StepKind) -> Callable[..., Any]:
    """The step as a list of operations, traced on copies; a value that is asked for is an error."""
    copies = torch.utils._pytree.tree_map(torch.clone, (state, kv))
    tables = [table for table in vars(step._tables).values() if isinstance(table, torch.Tensor)]
    before = [table.clone() for table in tables]  # make_fx runs what it traces; a CUDA graph does not
    # What shapes the values have is noted for compilers, and takes more than half of the time.
    with mock.patch("torch.fx.experimental.proxy_tensor.set_meta", lambda proxy, value: proxy):
        graph = make_fx(lambda state, kv: RUN(step, state, kv, kind))(*copies)
    for table, was in zip(tables, before, strict=True):
        table.copy_(was)
    return graph


RUN = DeviceStep.__call__


@pytest.mark.parametrize(
    ("tree", "temperature"),
    list(zip(TREES, (0.8, 0.0, 0.8, 0.0), strict=True)),
    ids=["none", "chain", "forked", "dynamic"],
)
def test_a_step_that_was_captured_once_gives_the_answers_when_it_is_replayed(
    tree: Any, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list of operations, as a CUDA graph is: what the Python of a step decides is decided once."""
    base = kernel_base("qwen3", "torch", seed=3, num_hidden_layers=1)
    heads = random_heads(SEARCHING[1], base)
    graphs: dict[tuple[object, ...], Callable[..., Any]] = {}

    def replay(self: DeviceStep, state: DeviceState, kv: torch.Tensor, kind: StepKind) -> None:
        key = (len(kv[0, 0]), kv.shape[4], *kind)
        if key not in graphs:
            graphs[key] = captured(self, state, kv, kind)
        graphs[key](state, kv)

    prompts = random_prompts(random.Random(1), 3, 29, longest=9)
    how: dict[str, Any] = {"max_new_tokens": 9, "temperature": temperature, "seed": [1, 2, 3]}
    if tree is FORKED:
        how |= {"top_p": 0.9, "repetition_penalty": 1.2, "frequency_penalty": 0.3, "logit_bias": {3: 2.0}}
    own = with_backend(base, "auto")
    expected = Engine(own, drafter="none").generate(prompts, **how)
    drafter = "none" if tree is None else "heads+lookup" if tree is TREES[1] else "heads"
    tree = TreeConfig("dynamic", tree.num_nodes) if isinstance(tree, DynamicTree) else tree
    with monkeypatch.context() as patch:
        patch.setattr(DeviceStep, "__call__", replay)
        found = Engine(base, heads, drafter, tree, max_rows=2).generate(prompts, **how)
    same(found, expected)
    assert 1 <= len(graphs) <= 3  # two rows, and the last ones alone


class NoReads(TorchDispatchMode):
    """Refuses every operation that reads a value, or takes one from the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0]
        assert name not in READS, f"the step calls {name}"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("design", [HEAD_DESIGNS[9], SEARCHING[0]], ids=lambda d: f"{d.kind}-{d.induction}")
@pytest.mark.parametrize("has_sampled", [False, True])
@pytest.mark.parametrize(
    "build",
    [*(partial(drafter_of, tree=tree) for tree in TREES), lookup_of, heads_lookup_of],
    ids=[*NAMES, "lookup", "heads+lookup"],
)
def test_no_value_is_read_by_the_host(
    build: Callable[[Base, Heads], Drafter], has_sampled: bool, design: HeadsConfig
) -> None:
    """With real tensors and with fake ones, which have no values."""
    base = kernel_base("llama", "torch", seed=3, num_hidden_layers=1)
    drafter = build(base, random_heads(design, base))
    tables = TokenTables(2, base.vocab_size, base.device)
    step = DeviceStep(base, TreePass(base, drafter, 64), drafter, True, tables)
    kind = StepKind(Asked(has_greedy=True, has_sampled=has_sampled), has_undrafted=True)
    if has_sampled:
        everything = Sampling(0.8, 0.9, 5, 0.1, 1.2, 0.5, 0.5, {3: 1.0}, (7,), min_new_tokens=3)
        for row in range(2):
            tables.add(row, everything, [1, 2], [4])
        kind = StepKind(Asked.by([everything, Sampling()]), True, True, (True,) * 3, True, True, True)
    width = base.hidden_size * (1 + len(drafter.layers))

    columns_B5 = columns_of([Sampling(0.8, 0.9, 5, 0.1), Sampling()], base.device)

    def inputs() -> tuple[DeviceState, torch.Tensor]:
        state = DeviceState.empty(2, step.max_path, width, base.vocab_size, base.dtype, base.device, num_slots=40)
        state.answers.lengths_B.fill_(9)
        state.answers.limit_B.fill_(100)
        state.penalties_B3.fill_(1.2)
        state.columns_B5.copy_(columns_B5)
        return state, torch.zeros(1, 2, 2, 2, 40, 16)

    step(*inputs(), kind)  # what is made once is made now, as before a capture
    with NoReads():
        state, kv = inputs()
        step(state, kv, kind)
    assert (state.answers.written_B > 0).all()
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    state, kv = torch.utils._pytree.tree_map(fake.from_tensor, inputs())
    with fake:
        step(state, kv, kind)


def test_the_check_finds_a_value_that_is_read() -> None:
    with pytest.raises(AssertionError, match="the step calls _local_scalar_dense"), NoReads():
        torch.ones(3).sum().item()
    fake = FakeTensorMode()
    with pytest.raises(DataDependentOutputException):
        fake.from_tensor(torch.ones(3)).sum().item()


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
        Engine(base, drafter="none", accept="rejection").generate([[1, 2]], 4, temperature=1.0)
        Engine(with_backend(base, "auto"), drafter="none").generate([[1, 2]], 4)
    assert [message for message in caplog.messages if "not captured" in message] == [
        "steps are not captured while the trees of an answer are recorded",
        "steps are not captured while a request asks for banned_tokens",
        "steps are not captured, because the drafter reads texts on the host",
        "steps are not captured, because the rule rejection reads what it accepts on the host",
    ]
    assert steps_are_counted == [0]
    Engine(base, drafter="none").generate([[1, 2]], 4)
    assert steps_are_counted == [5]  # the last is launched before the end of the one before it is known
