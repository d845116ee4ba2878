"""Every Triton kernel against its specification, in Triton's interpreter on a CPU.

The interpreter must be switched on before triton is imported, and nothing else here may run in it: the files of
tests/interpreted run in a pytest of their own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the Triton kernels need triton (pip install -e '.[dev]')")

FOLDER = Path(__file__).with_name("interpreted")


def test_in_the_interpreter() -> None:
    """One process for all files: to import torch takes as long as the tests of one."""
    files = sorted(str(path) for path in FOLDER.glob("*.py") if path.name != "conftest.py")
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-o", "pythonpath=tests", f"--confcutdir={FOLDER}"]
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *files],
        cwd=FOLDER.parents[1],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout[-8000:] + ended.stderr[-2000:]
    assert " passed" in ended.stdout
