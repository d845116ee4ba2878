"""Runs a script of the project in this process, as its command line would: importing torch once is enough."""

import io
import json
import logging
import runpy
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]


class Result(NamedTuple):
    """How a script ended."""

    status: int
    out: str
    err: str

    @property
    def last_line(self) -> dict:
        """The JSON that ends stdout."""
        return json.loads(self.out.splitlines()[-1])


def run_script(script: str, *arguments: str, stdin: str = "") -> Result:
    """`python SCRIPT ARGUMENTS`, SCRIPT being named from the root of the project."""
    return run_main(lambda: runpy.run_path(str(ROOT / script), run_name="__main__"), script, *arguments, stdin=stdin)


def run_main(main: Callable[[], object], *argv: str, stdin: str = "") -> Result:
    """Calls a script's main; what Hydra does to logging is undone afterwards."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    out, err = io.StringIO(), io.StringIO()
    status: object = 0
    try:
        with (
            patch.object(sys, "argv", list(argv)),
            patch.object(sys, "stdin", io.StringIO(stdin)),
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            try:
                main()
            except SystemExit as ending:
                status = ending.code
    finally:
        root.handlers[:], root.level = handlers, level
        logging.captureWarnings(False)
    assert status is None or isinstance(status, int), status
    return Result(status or 0, out.getvalue(), err.getvalue())
