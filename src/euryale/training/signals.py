"""Ctrl-C, SIGTERM and SIGUSR2 in the middle of a training step.

The signal is noted, the step is finished, the run is saved, and `Interrupted` says how to go on. A second signal
acts at once. Under torchrun it is ignored: a Ctrl-C reaches every
process twice there, once from the terminal and once from torchrun, which itself ends what is too slow.
"""

import os
import signal
import threading
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any

from euryale.system.processes import is_first, is_supervised
from euryale.system.streams import STDERR

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)  # the last is Slurm's, by submitit, before a time limit


def _say_at_once(line: str) -> None:
    """On stderr, from within a signal handler. The signal may have come while this very thread wrote a line: a stream
    that is being written to raises when the same thread writes to it again, so this goes past sys.stderr."""
    with suppress(OSError):  # nobody reads stderr any more
        os.write(STDERR, f"{line}\n".encode())


class Interrupted(Exception):
    """The run was stopped from outside and saved; the message says how to go on."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_status = 128 + signal_number  # what a shell reports: 130 for Ctrl-C, 143 for SIGTERM


class SignalGuard:
    """While entered, the first of SIGNALS only sets `received`; earlier handlers return on that or on exit."""

    def __init__(self) -> None:
        self.received = 0  # the signal's number, 0 while there was none
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "SignalGuard":
        if threading.current_thread() is threading.main_thread():  # Python handles signals nowhere else
            for number in SIGNALS:
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        is_new, self.received = not self.received, self.received or number
        if not is_supervised():
            self._restore()
        if is_new and is_first():
            again = "" if is_supervised() else " (again to stop at once)"
            _say_at_once(f"{signal.Signals(number).name}: finishing this step, then saving{again}")

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
