"""Runs infer/serve.py in a process of its own, as a user would. Not a test file itself."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
from scripts import ROOT


@dataclass
class Served:
    """The process and its address. `process` may be killed; it is gone when the block of `served` ends."""

    process: subprocess.Popen[str]
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def served(*settings: str, seconds: float = 300.0, script: str = "infer/serve.py") -> Iterator[Served]:
    """`python SCRIPT SETTINGS`, from the line that names its address on. It lives `seconds` at most.

    Its stdout is a pipe that the test may read; what it logs after its start is thrown away.
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, script, *settings]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) as process:  # type: ignore[call-overload]
        watchdog = threading.Timer(seconds, process.kill)
        watchdog.start()
        try:
            port = _port_of(process)
            # Read on, or the process stands still when the pipe is full.
            threading.Thread(target=process.stderr.read, daemon=True).start()
            yield Served(process, port)
        finally:
            process.kill()
            watchdog.cancel()


def _port_of(process: subprocess.Popen[str]) -> int:
    """Waits for the line that names the address; a test fails by what the process said where none comes."""
    lines = []
    for line in process.stderr or ():
        lines.append(line)
        if found := re.search(r" at http://127\.0\.0\.1:(\d+): ", line):
            return int(found.group(1))
    pytest.fail("".join(lines))
