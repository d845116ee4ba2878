"""Progress of a job: a bar on a terminal, a line now and then elsewhere, nothing on other ranks."""

import io
import logging
import sys
from collections.abc import Callable

import pytest

from euryale.system import progress
from euryale.system.progress import LINE_EVERY_S, Progress


class Clock:
    """time.perf_counter that moves when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress.time, "perf_counter", clock)
    return clock


Said = Callable[[], list[str]]


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Said:
    """The lines so far."""
    caplog.set_level(logging.INFO, logger="euryale.system.progress")
    return lambda: [record.getMessage() for record in caplog.records]


def test_a_line_says_count_rate_time_gone_and_time_left(clock: Clock, said: Said) -> None:
    shown = Progress("base writes text", 100, "rows")
    clock.now += LINE_EVERY_S * 2
    shown.advance(25, tokens=40_000)
    assert said() == ["base writes text 25/100 rows: 2,000 tokens/s, 20 s gone, 60 s left"]


def test_lines_come_every_ten_seconds_and_once_at_the_end(clock: Clock, said: Said) -> None:
    shown = Progress("count", 100, "rows")
    for _ in range(100):
        clock.now += LINE_EVERY_S / 25
        shown.advance()
    assert [message.split(":")[0] for message in said()] == [f"count {n}/100 rows" for n in (25, 50, 75, 100)]
    shown.close()
    assert len(said()) == 4, "the end was said already"


def test_a_short_job_is_one_line_and_an_empty_one_is_none(clock: Clock, said: Said) -> None:
    Progress("nothing", 0, "rows").close()
    assert not said()
    shown = Progress("short", 2, "rows")
    shown.advance(2)
    shown.close()
    assert said() == ["short 2/2 rows: 0 s gone, 0 s left"]


def test_what_an_earlier_run_did_counts_as_done_but_not_as_speed(clock: Clock, said: Said) -> None:
    shown = Progress("text", 100, "rows", start=80)
    clock.now += LINE_EVERY_S
    shown.advance(10)
    assert said() == ["text 90/100 rows: 10 s gone, 10 s left"]


def test_facts_stay_until_others_come(clock: Clock, said: Said) -> None:
    shown = Progress("training", 10, "steps")
    shown.advance(facts="loss 3.000 nats")
    for facts in (None, "loss 2.000 nats"):
        clock.now += LINE_EVERY_S
        shown.advance(facts=facts)
    assert [message.split(": ")[1].split(",")[0] for message in said()] == ["loss 3.000 nats", "loss 2.000 nats"]


@pytest.mark.parametrize("seconds, words", [(99, "99 s left"), (600, "10 min left"), (9000, "2.5 h left")])
def test_long_times_are_told_in_minutes_and_hours(clock: Clock, said: Said, seconds: int, words: str) -> None:
    shown = Progress("long", 2, "steps")
    clock.now += seconds
    shown.advance()
    assert said()[0].endswith(words)


def test_another_rank_is_silent(clock: Clock, said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    shown = Progress("training", 2, "steps", is_shown=False)
    clock.now += LINE_EVERY_S
    shown.advance(facts="loss 3 nats")
    shown.close()
    assert not said() and terminal.getvalue() == ""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar_with_the_same_facts_and_no_lines(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    shown = Progress("training", 4, "steps", start=1)
    shown.advance(tokens=1000, facts="loss 3.123 nats")
    shown.advance(2)
    shown.close()
    drawn = terminal.getvalue()
    assert "training" in drawn and "1/4" in drawn and "4/4" in drawn
    assert "loss 3.123 nats" in drawn and "tokens/s" in drawn
    assert not said()
