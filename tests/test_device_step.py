"""One step on the device: it can be captured, and no value of it is read by the host."""

import random
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
from device_decodes import FORKED, SEARCHING, same
from kernel_bases import kernel_base, with_backend
from random_models import EAGLE_DESIGNS, HEAD_DESIGNS, random_heads, random_prompts
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from euryale.base.base import Base
from euryale.decoding.config import AcceptConfig, TreeConfig
from euryale.decoding.device_state import DeviceState, StepKind
from euryale.decoding.device_step import DeviceStep
from euryale.decoding.drafters.adaptive import AdaptiveDrafter
from euryale.decoding.drafters.eagle import EagleDrafter
from euryale.decoding.drafters.heads import HeadsDrafter
from euryale.decoding.drafters.heads_lookup import HeadsLookupDrafter
from euryale.decoding.drafters.interface import Drafter
from euryale.decoding.drafters.lookup import LookupDrafter
from euryale.decoding.drafters.none import NoDrafter
from euryale.decoding.engine import Engine
from euryale.decoding.sampling import Sampling
from euryale.decoding.sampling_batch import Asked, columns_of
from euryale.decoding.token_tables import TokenTables
from euryale.decoding.tree.tree import DynamicTree, Tree, chain
from euryale.decoding.tree_pass import TreePass
from euryale.heads.config import HeadsConfig
from euryale.heads.heads import Heads

TREES: tuple[Tree | DynamicTree | None, ...] = (None, chain(3), FORKED, DynamicTree(7, 3))
NAMES = ["none", "chain", "forked", "dynamic"]
READS = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "unique", "lift_fresh")


def drafter_of(base: Base, heads: Heads, tree: Tree | DynamicTree | None) -> Drafter:
    if tree is None:
        return NoDrafter(base)
    build = EagleDrafter if heads.config.kind == "eagle" else HeadsDrafter
    return build(base, heads, tree).begin(2, 40)


def lookup_of(base: Base, heads: Heads) -> Drafter:
    return LookupDrafter(base, DynamicTree(9, 4))


def heads_lookup_of(base: Base, heads: Heads) -> Drafter:
    return HeadsLookupDrafter(base, drafter_of(base, heads, FORKED), 3)


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
    heads = random_heads(EAGLE_DESIGNS[0] if tree is FORKED else SEARCHING[1], base)
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


DESIGNS = (HEAD_DESIGNS[9], SEARCHING[0], EAGLE_DESIGNS[1])


def adaptive_of(base: Base, heads: Heads) -> Drafter:
    trees = {1: NoDrafter(base), 4: HeadsDrafter(base, heads, chain(3))}
    return AdaptiveDrafter(trees, {1: 1.0, 4: 1.5}, {1: 1.0, 4: 1.2}).begin(2, 40)


BUILDS = {
    **{name: partial(drafter_of, tree=tree) for name, tree in zip(NAMES, TREES, strict=True)},
    "lookup": lookup_of,
    "heads+lookup": heads_lookup_of,
    "adaptive": adaptive_of,
}


@pytest.mark.parametrize(
    ("name", "rule", "design"),
    [
        *((name, rule, DESIGNS[0]) for name in ("none", "lookup") for rule in (None, "exact")),
        *((n, rule, d) for n in ("chain", *NAMES[2:], "heads+lookup") for rule in (None, "exact") for d in DESIGNS),
        ("adaptive", "exact", DESIGNS[1]),
        *((name, rule, d) for name in NAMES[2:] for rule in ("typical", "rejection") for d in DESIGNS[1:]),
    ],
    ids=lambda part: part.kind if isinstance(part, HeadsConfig) else str(part),
)
def test_no_value_is_read_by_the_host(name: str, rule: str | None, design: HeadsConfig) -> None:
    """With real tensors and with fake ones, which have no values. No rule: all rows are at T = 0."""
    base = kernel_base("llama", "torch", seed=3, num_hidden_layers=1)
    drafter = BUILDS[name](base, random_heads(design, base))
    tables = TokenTables(2, base.vocab_size, base.device)
    part = drafter.sizes()[min(drafter.sizes())]
    step = DeviceStep(base, TreePass(base, part, 64), part, drafter, AcceptConfig.of(rule or "exact"), tables)
    kind = StepKind(Asked(has_greedy=True, has_sampled=rule is not None), has_undrafted=True)
    if rule is not None:
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
        state.temperature_B.copy_(columns_B5[:, 0] * columns_B5[:, 4])
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
