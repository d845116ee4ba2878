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
TOGETHER = [["tree_attention.py"], ["nf4_linear.py", "small_kernels.py"], ["engine.py"]]  # each list is one process


def test_every_file_has_a_process() -> None:
    files = {path.name for path in FOLDER.glob("*.py")} - {"conftest.py"}
    assert sorted(name for names in TOGETHER for name in names) == sorted(files)


@pytest.mark.parametrize("names", TOGETHER, ids=" ".join)
def test_in_the_interpreter(names: list[str]) -> None:
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-o", "pythonpath=tests", f"--confcutdir={FOLDER}"]
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *(str(FOLDER / name) for name in names)],
        cwd=FOLDER.parents[1],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout[-8000:] + ended.stderr[-2000:]
    assert " passed" in ended.stdout
