"""Runs a script of the project in this process, as its command line would: importing torch once is enough.

And what such runs learn from: SMALL makes one a matter of a second or two. Three things that take half of that time and
that other tests show are left out: the pictures of a report are composed and not rendered unless `renders` says so,
Hydra does not compose the settings twice, and a benchmark listens for others on the machine for a moment only. To
import this file makes Hydra compose in half its time (compose_faster).
"""

import io
import json
import logging
import runpy
import sys
import traceback
from collections.abc import Callable
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import omegaconf._utils
import omegaconf.basecontainer
import torch
import yaml
from hydra._internal.hydra import Hydra
from hydra.core.config_store import ConfigStore
from matplotlib.figure import Figure

from euryale.evaluation import bench

ROOT = Path(__file__).resolve().parents[1]

SMALL = [
    "data.block_size=64", "data.batch_size=2", "data.held_out_one_in=4", "regenerate.num_prompts=24",
    "regenerate.prompt_tokens=8", "regenerate.new_tokens=16", "regenerate.shard_rows=10", "heads.num_heads=2",
    "optim.num_steps=4", "optim.eval_batches=1", "optim.log_every=1", "calibrate.num_prompts=3",
    "calibrate.prompt_tokens=8", "calibrate.new_tokens=12", "calibrate.node_counts=[1,2,4]", "calibrate.repeats=2",
    "calibrate.context_tokens=16", "evaluate.num_prompts=2", "evaluate.max_new_tokens=8", "evaluate.repeats=1",
    "evaluate.breadth_prompts=1", "threads=1",
]  # fmt: skip


class Result(NamedTuple):
    """How a script ended."""

    status: int
    out: str
    err: str

    @property
    def last_line(self) -> dict:
        """The JSON that ends stdout."""
        return json.loads(self.out.splitlines()[-1])


def compose_faster() -> None:
    """The same settings from Hydra, without two things that a process which composes once never notices: a copy of all
    schemas for every composition, and a new reader of YAML, written in Python, for every file."""
    ConfigStore.__deepcopy__ = lambda store, memo: store
    with patch.object(yaml, "SafeLoader", yaml.CSafeLoader):
        loader = omegaconf._utils.get_yaml_loader()
    for module in (omegaconf._utils, omegaconf.basecontainer):
        module.get_yaml_loader = lambda: loader


compose_faster()


def run_script(script: str, *arguments: str, stdin: str = "", renders: bool = False) -> Result:
    """`python SCRIPT ARGUMENTS`, SCRIPT being named from the root of the project."""
    is_drawn = renders or script != "train/run.py"
    with nullcontext() if is_drawn else patch("euryale.report.plots.FigureCanvasAgg", leave_unrendered):
        return run_main(
            lambda: runpy.run_path(str(ROOT / script), run_name="__main__"), script, *arguments, stdin=stdin
        )


def leave_unrendered(figure: Figure) -> None:
    """Makes the file of this figure an empty one."""
    figure.savefig = lambda *_, **__: None


def run_main(main: Callable[[], object], *argv: str, stdin: str = "") -> Result:
    """Calls a script's main; what it and Hydra do to logging and to torch's threads is undone afterwards."""
    root, threads = logging.getLogger(), torch.get_num_threads()
    handlers, level = list(root.handlers), root.level
    out, err = io.StringIO(), io.StringIO()
    status: object = 0
    try:
        with (
            patch.object(sys, "argv", list(argv)),
            patch.object(sys, "stdin", io.StringIO(stdin)),
            # It composes everything to read hydra.mode, which is None unless it is set, and composes again.
            patch.object(Hydra, "get_mode", lambda *_, **__: None),
            patch.object(bench, "_LISTEN_SECONDS", 0.01),
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            try:
                main()
            except SystemExit as ending:
                status = ending.code
            except Exception:  # what the interpreter does with a bug
                traceback.print_exc()
                status = 1
    finally:
        root.handlers[:], root.level = handlers, level
        torch.set_num_threads(threads)
        logging.captureWarnings(False)
        logging.disable(logging.NOTSET)
    assert status is None or isinstance(status, int), status
    return Result(status or 0, out.getvalue(), err.getvalue())


def write_texts(place: Path) -> None:
    """Sixty rows as place/texts.jsonl."""
    rows = [{"text": f"row {i}: " + "the quick brown fox jumps over the lazy dog " * 3} for i in range(60)]
    (place / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def assert_refused(result: Result, *words: str) -> None:
    assert result.status == 2, result.err
    assert "Traceback" not in result.err and "{" not in result.out
    for word in words:
        assert word in result.err, result.err
