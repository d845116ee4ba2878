"""Decoding takes the number of threads that was found fastest, and leaves alone what it cannot know."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from euryale.base.base import Base
from euryale.decoding.engine import Engine
from euryale.evaluation import threads as module
from euryale.evaluation.threads import use_calibrated_threads, use_fastest_threads
from euryale.system.files import write_json


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("seconds, fastest", [({1: 1.0, 2: 2.0}, 1), ({1: 2.0, 2: 1.0}, 2), ({1: 1.0, 2: 0.95}, 1)])
def test_the_faster_of_one_and_all_threads_is_taken(
    tiny_base: Base, monkeypatch: pytest.MonkeyPatch, seconds: dict[int, float], fastest: int
) -> None:
    now = 0.0
    plain = Engine.generate

    def timed(self: Engine, *arguments: object) -> object:
        nonlocal now
        now += seconds[torch.get_num_threads()]
        return plain(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Engine, "generate", timed)
    monkeypatch.setattr(module.time, "perf_counter", lambda: now)
    use_fastest_threads(tiny_base)
    assert torch.get_num_threads() == fastest


@pytest.mark.parametrize(
    "ratios, are_worth_it",
    [
        ([0.74] * 7, True),  # an idle machine
        ([0.74] * 6 + [1.9], True),  # and one busy moment
        ([0.74] * 5 + [1.3, 1.9], False),  # a shared one: it may be busy again while decoding
        ([0.93] * 7, False),
        ([0.6, 2.4, 0.7, 2.2, 0.6, 2.3, 0.7], False),
    ],
)
def test_several_threads_must_be_a_tenth_sooner_and_keep_their_lead(ratios: list[float], are_worth_it: bool) -> None:
    assert module._are_worth_it(ratios) == are_worth_it


def test_a_single_thread_is_not_timed(tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(Engine, "generate", None)
    use_fastest_threads(tiny_base)
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("content, expected", [
    ({"threads": 1}, 1), ({"threads": 64}, 2), ({"threads": 0}, 2), ({"threads": "1"}, 2), ({}, 2), ([1], 2),
])  # fmt: skip
def test_a_tree_is_walked_with_the_threads_it_was_timed_with(
    tiny_base: Base, tmp_path: Path, content: object, expected: int
) -> None:
    write_json(tmp_path / "tree.json", content)
    use_calibrated_threads(tiny_base, tmp_path)
    assert torch.get_num_threads() == expected


def test_without_a_readable_tree_nothing_changes(tiny_base: Base, tmp_path: Path) -> None:
    use_calibrated_threads(tiny_base, tmp_path)
    (tmp_path / "tree.json").write_text("{")
    use_calibrated_threads(tiny_base, tmp_path)
    assert torch.get_num_threads() == 2
