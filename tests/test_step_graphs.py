"""When a step is captured and when it is not, on a card that is only acted."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch

from euryale.decoding.step_graphs import EAGER_STEPS, StepGraphs

CARD = torch.device("cuda", 0)


class Card:
    """What torch.cuda is asked for, and what came of it."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.is_capturing = False
        self.has_room = True

    def step(self) -> None:
        if self.is_capturing and not self.has_room:
            raise torch.OutOfMemoryError("no room")
        self.events.append("recorded" if self.is_capturing else "ran")

    @contextmanager
    def graph(self, graph: "Graph", **how: Any) -> Iterator[None]:
        assert how["pool"] == (0, 1) and how["capture_error_mode"] == "thread_local"
        self.is_capturing = True
        try:
            yield
        finally:
            self.is_capturing = False
            if not self.has_room:
                raise RuntimeError("the capture failed")  # as CUDA does when it ends a capture that failed


class Stream:
    def __init__(self, device: object = None) -> None:
        self.waited_for: list[object] = []

    def wait_stream(self, other: object) -> None:
        self.waited_for.append(other)


class Graph:
    card: Card

    def replay(self) -> None:
        self.card.events.append("replayed")


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    card, current = Card(), Stream()
    monkeypatch.setattr(Graph, "card", card, raising=False)
    for name, stand_in in (
        ("Stream", Stream), ("CUDAGraph", Graph), ("graph", card.graph), ("stream", lambda stream: nullcontext()),
        ("current_stream", lambda device: current), ("graph_pool_handle", lambda: (0, 1)),
    ):  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, stand_in)
    return card


def test_a_kind_of_step_runs_before_it_is_captured_and_every_call_is_one_step(card: Card) -> None:
    graphs = StepGraphs(CARD)
    for _ in range(EAGER_STEPS + 2):
        graphs.run("one row", card.step)
    assert card.events == ["ran"] * EAGER_STEPS + ["recorded", "replayed", "replayed"]
    graphs.run("two rows", card.step)
    assert card.events[-1] == "ran"
    graphs.run("one row", card.step)
    assert card.events[-1] == "replayed"


def test_where_no_memory_is_left_steps_stay_eager_and_the_log_says_so_once(
    card: Card, caplog: pytest.LogCaptureFixture
) -> None:
    card.has_room = False
    graphs = StepGraphs(CARD)
    with caplog.at_level(logging.WARNING, logger="euryale.decoding.step_graphs"):
        for _ in range(EAGER_STEPS + 3):
            graphs.run("one row", card.step)
    assert card.events == ["ran"] * (EAGER_STEPS + 3)
    assert caplog.messages == ["no CUDA graph of the step one row (no memory); such steps stay eager"]


def test_a_step_that_no_graph_takes_stays_eager_and_the_log_says_why(
    card: Card, caplog: pytest.LogCaptureFixture
) -> None:
    graphs = StepGraphs(CARD)

    def step() -> None:
        if card.is_capturing:
            raise RuntimeError("operation not permitted when stream is capturing\nCompile with TORCH_USE_CUDA_DSA")
        card.events.append("ran")

    with caplog.at_level(logging.WARNING, logger="euryale.decoding.step_graphs"):
        for _ in range(EAGER_STEPS + 2):
            graphs.run("one row", step)
    assert card.events == ["ran"] * (EAGER_STEPS + 2)
    [message] = caplog.messages
    assert message.endswith("(operation not permitted when stream is capturing); such steps stay eager")


def test_graphs_that_were_not_used_for_long_are_forgotten(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("euryale.decoding.step_graphs._MOST_GRAPHS", 2)
    graphs = StepGraphs(CARD)
    for key in "abc":
        for _ in range(EAGER_STEPS + 1):
            graphs.run(key, card.step)
    card.events.clear()
    for key in "cba":
        graphs.run(key, card.step)
    assert card.events == ["replayed", "replayed", "recorded", "replayed"]


def test_where_no_graphs_are_asked_for_every_step_runs_as_it_is(card: Card) -> None:
    graphs = StepGraphs(CARD, captures=False)
    for _ in range(EAGER_STEPS + 3):
        graphs.run("one row", card.step)
    assert card.events == ["ran"] * (EAGER_STEPS + 3)


def test_without_a_card_a_step_is_called_as_it_is() -> None:
    calls: list[int] = []
    graphs = StepGraphs(torch.device("cpu"))
    for number in range(5):
        graphs.run("one row", lambda number=number: calls.append(number))  # type: ignore[misc]
    assert calls == [0, 1, 2, 3, 4]
