"""Ctrl-C while a script is still importing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted([*ROOT.glob("train/*.py"), *ROOT.glob("infer/*.py")])


def ends(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


def test_ctrl_c_in_the_middle_of_an_import_is_one_line_and_status_130() -> None:
    # Where the tests run in the background of a shell, Ctrl-C is ignored, which a child would inherit.
    code = "import euryale.cli.ctrl_c, os, signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    ended = ends(f"{code}; os.kill(os.getpid(), signal.SIGINT); import torch")
    assert ended.returncode == 130
    assert ended.stderr == "interrupted; what was saved before is kept\n"


def test_nothing_is_logged_after_that_line() -> None:
    code = "import euryale.cli.ctrl_c, atexit, logging; atexit.register(logging.warning, 'cache_hits: 0')"
    ended = ends(f"{code}; raise KeyboardInterrupt")
    assert ended.stderr == "interrupted; what was saved before is kept\n"


def test_bugs_keep_their_traceback() -> None:
    ended = ends("import euryale.cli.ctrl_c; 1 / 0")
    assert ended.returncode == 1
    assert ended.stderr.startswith("Traceback") and "ZeroDivisionError" in ended.stderr


def test_nothing_that_takes_time_is_imported_before() -> None:
    ended = ends("import euryale.cli.ctrl_c, sys; print(*{'torch', 'numpy', 'transformers', 'hydra'} & {*sys.modules})")
    assert ended.stdout == "\n"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_every_script_imports_it_first(script: Path) -> None:
    body = ast.parse(script.read_text(encoding="utf-8")).body
    first = next(node for node in body if isinstance(node, ast.Import | ast.ImportFrom) and "euryale" in ast.dump(node))
    assert ast.unparse(first) == "import euryale.cli.ctrl_c"
