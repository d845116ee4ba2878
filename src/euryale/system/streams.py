"""Standard streams that are closed, full, or that nobody reads any more.

A stream that was closed before the start (`>&-`, a daemon) is opened to nowhere: else the next file that is opened
would take its number, and what is meant for stderr would be written into that file. What stderr does not take is
dropped, because there is nobody to tell. Where stdout takes nothing the process ends: without a word as `| head -1`
ends any program, else with a message.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn, TextIO

GONE = 141  # what a shell reports for SIGPIPE: 128 + 13
UNWRITABLE = 2
STDERR = 2


def open_missing() -> None:
    """Opens those of stdin, stdout and stderr that are closed to nowhere."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= STDERR:
        os.set_inheritable(number, True)  # as the others are
    os.close(number)
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))


@contextmanager
def guarded() -> Iterator[None]:
    """Inside, stdout and stderr may be full, or have no reader any more."""
    out, err = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Stdout(out), _Stderr(err)
    try:
        yield
        sys.stdout.flush()
    finally:
        sys.stdout, sys.stderr = out, err


class _Guarded:
    """A stream, but for what happens when it takes nothing."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        """What is still to be written, at the end of the process at the latest, goes nowhere."""
        with suppress(OSError):  # not a file
            number = os.open(os.devnull, os.O_WRONLY)
            os.dup2(number, self._stream.fileno())
            os.close(number)


class _Stderr(_Guarded):
    pass


class _Stdout(_Guarded):
    def _give_up(self, error: OSError) -> NoReturn:
        super()._give_up(error)
        if isinstance(error, BrokenPipeError):
            sys.exit(GONE)
        print(
            f"error: stdout must take what is written to it; got: {error.strerror}. Make room, or send it elsewhere.",
            file=sys.stderr, flush=True,
        )  # fmt: skip
        sys.exit(UNWRITABLE)
