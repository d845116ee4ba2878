"""Every Triton kernel against its specification, in Triton's interpreter on a CPU.

The interpreter must be switched on before triton is imported, and nothing else here may run in it: each file of
tests/interpreted runs in a pytest of its own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the Triton kernels need triton (pip install -e '.[dev]')")

FOLDER = Path(__file__).with_name("interpreted")
FILES = sorted(path for path in FOLDER.glob("*.py") if path.name != "conftest.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_in_the_interpreter(path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "-o",
        "pythonpath=tests",
    ]
    ended = subprocess.run(
        [*command, f"--confcutdir={FOLDER}", str(path)],
        cwd=FOLDER.parents[1],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout[-8000:] + ended.stderr[-2000:]
    assert " passed" in ended.stdout
