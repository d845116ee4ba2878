"""Runs infer/serve.py in a process of its own, as a user would. Not a test file itself."""

import json
import logging
import os
import re
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.context import ForkProcess

import pytest
from scripts import ROOT


@dataclass
class Served:
    """The process and its address. `process` may be killed; it is gone when the block of `served` ends."""

    process: subprocess.Popen[str] | ForkProcess
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def served(*settings: str, seconds: float = 240.0, script: str = "infer/serve.py") -> Iterator[Served]:
    """`python SCRIPT SETTINGS`, from the line that names its address on. It lives `seconds` at most, fewer than a test
    may take: then it is aborted, and what it logged and where its threads stand is printed for the test's report.

    Its stdout is a pipe that the test may read.
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    environment |= {"PYTHONFAULTHANDLER": "1"}
    command = [sys.executable, script, *settings]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) as process:  # type: ignore[call-overload]
        watchdog = threading.Timer(seconds, process.send_signal, [signal.SIGABRT])
        watchdog.start()
        said: list[str] = []
        # Read on, or the process stands still when the pipe is full.
        reader = threading.Thread(target=lambda: said.extend(process.stderr), daemon=True)
        try:
            port = _port_of(process.stderr or ())
            reader.start()
            yield Served(process, port)
        finally:
            process.kill()
            watchdog.cancel()
            if process.wait() == -signal.SIGABRT:
                reader.join(5)
                print("".join(said))


@contextmanager
def served_by_a_fork(*settings: str, seconds: float = 300.0) -> Iterator[Served]:
    """The same with a fork of this process, which has imported everything already; what it prints is thrown away.

    Not while playwright's loop is running here: a fork of that does not serve.
    """
    with fork_that_serves_when_asked(seconds) as serve:
        yield serve(*settings)


@contextmanager
def fork_that_serves_when_asked(seconds: float = 300.0) -> Iterator[Callable[..., Served]]:
    """A fork that is made now and serves with the settings that it is given once, when it is given them."""
    (asked, ask), (read, write) = os.pipe(), os.pipe()
    process = get_context("fork").Process(target=_serve_when_asked, args=(asked, ask, write), daemon=True)
    process.start()
    os.close(asked)
    os.close(write)
    watchdog = threading.Timer(seconds, process.kill)
    watchdog.start()
    with open(ask, "w") as settings_file, open(read) as said:

        def serve(*settings: str) -> Served:
            json.dump(settings, settings_file)
            settings_file.close()
            port = _port_of(said)
            threading.Thread(target=said.read, daemon=True).start()
            return Served(process, port)

        try:
            yield serve
        finally:
            process.kill()
            process.join()
            watchdog.cancel()


def _serve_when_asked(asked: int, ask: int, stderr: int) -> None:
    os.close(ask)
    with open(asked) as file:
        _serve(json.load(file), stderr)


def _serve(settings: list[str], stderr: int) -> None:
    """infer/serve.py in a fork, without what pytest has done to logging and to the streams."""
    os.chdir(ROOT)
    os.dup2(stderr, 2)
    logging.getLogger().handlers.clear()
    sys.argv = ["infer/serve.py", *settings]
    with open(os.devnull, "w") as out, open(2, "w", buffering=1, closefd=False) as err:
        sys.stdout, sys.stderr = out, err
        runpy.run_path(str(ROOT / "infer/serve.py"), run_name="__main__")


def _port_of(said: Iterable[str]) -> int:
    """Waits for the line that names the address; a test fails by what the process said where none comes."""
    lines = []
    for line in said:
        lines.append(line)
        if found := re.search(r" at http://127\.0\.0\.1:(\d+): ", line):
            return int(found.group(1))
    pytest.fail("".join(lines))
