"""Signals that come while the thread that handles them writes a line to stderr, as one of the log may be.

A stream that is being written to raises "reentrant call" when the same thread writes to it again, and a lock that the
thread holds is never free: a handler that logs is lost, or stands still.
"""

import asyncio
import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest
import uvicorn

from euryale.cli.serve_on_ray import _Signals
from euryale.server.run import DrainingServer
from euryale.training.signals import SignalGuard


class _Interrupted(io.RawIOBase):
    """A file into which a first write brings a signal."""

    def __init__(self, number: int) -> None:
        self._numbers = [number]
        self.text = b""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.text += bytes(data)
        if self._numbers:
            signal.raise_signal(self._numbers.pop())
        return len(data)


@contextmanager
def handled_by(handler: Callable[..., object], number: int) -> Iterator[None]:
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def write_a_line_with(number: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """Logs a line to a stderr into which the signal comes; returns all that was written there."""
    file = _Interrupted(number)
    stream = io.TextIOWrapper(io.BufferedWriter(file), line_buffering=True)
    root, handler = logging.getLogger(), logging.StreamHandler(stream)
    level = root.level
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        root.addHandler(handler)
        root.setLevel(logging.INFO)
        try:
            root.info("a line")
        finally:
            root.removeHandler(handler)
            root.setLevel(level)
    return file.text.decode()


def test_a_handler_that_logs_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """That the tests below can fail."""
    seen = []

    def log_and_go_on(*_: object) -> None:
        logging.getLogger().info("a second line")
        seen.append("went on")

    with handled_by(log_and_go_on, signal.SIGTERM):
        write_a_line_with(signal.SIGTERM, monkeypatch)
    assert seen == []


def test_a_server_drains(monkeypatch: pytest.MonkeyPatch) -> None:
    class Service:
        is_draining = False
        drained_for: float | None = None

        async def drain(self, seconds: float) -> None:
            self.drained_for = seconds

    async def ignore(*_: object) -> None:
        pass

    service = Service()
    server = DrainingServer(cast(Any, service), uvicorn.Config(ignore), 3.0)

    async def run() -> None:
        server._loop = asyncio.get_running_loop()
        with handled_by(server.handle_exit, signal.SIGTERM):
            assert write_a_line_with(signal.SIGTERM, monkeypatch) == "a line\n"
        await asyncio.sleep(0.05)

    asyncio.run(run())
    assert service.is_draining and service.drained_for == 3.0 and server.should_exit


def test_training_notes_it_and_says_so(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    with SignalGuard() as guard:
        assert write_a_line_with(signal.SIGUSR2, monkeypatch) == "a line\n"
    assert guard.received == signal.SIGUSR2
    assert capfd.readouterr().err == "SIGUSR2: finishing this step, then saving (again to stop at once)\n"


@pytest.mark.parametrize("is_closed", [False, True])
def test_training_notes_it_where_nobody_reads_stderr(is_closed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.close(read)
    if is_closed:
        os.close(write)
    monkeypatch.setattr("euryale.training.signals.STDERR", write)
    with SignalGuard() as guard:
        signal.raise_signal(signal.SIGTERM)
    assert guard.received == signal.SIGTERM
    if not is_closed:
        os.close(write)


def test_replicas_are_asked_to_end_whatever_the_waiting_thread_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A first signal within every lock that `wait` may take, and a second one."""
    real = threading.Condition.__enter__
    numbers = [signal.SIGTERM]

    def enter(condition: threading.Condition) -> bool:
        entered = real(condition)
        if threading.current_thread() is threading.main_thread() and numbers:
            signal.raise_signal(numbers.pop())
        return entered

    timer = threading.Timer(0.1, signal.raise_signal, [signal.SIGTERM])
    with _Signals() as signals:
        timer.start()
        monkeypatch.setattr(threading.Condition, "__enter__", enter)
        signals.wait()
        monkeypatch.undo()
        assert not signals.is_urgent
        signal.raise_signal(signal.SIGTERM)
        assert signals.is_urgent
    timer.join()
