"""Scratch folder of a sweep of benchmarks, whose results are in output=FILE.jsonl.

Hydra makes a folder for every sweep. It is of no use after a sweep of infer/bench.py or train/measure.py, so it is
removed: of it only what Hydra and this module put there, and never a folder or file that was there before.
"""

import os
import sys
from contextlib import suppress
from pathlib import Path

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from euryale.report.ranking import FAILURE_FILE
from euryale.system.files import read_json
from euryale.system.paths import argument

FAILED_STATUS = 2
MADE_FILES = (FAILURE_FILE, "multirun.yaml")  # a failed job's record; Hydra's settings of the sweep


class BenchSweep(Callback):
    """Checks the folder before a sweep, tells of failed jobs after it, and removes what the sweep has made.

    Ends with status 2 when some jobs failed. `plots`: infer/plot_sweep.py draws such results.
    """

    def __init__(self, plots: bool = True) -> None:
        self._plots = plots
        self._made: list[Path] = []  # folders that the sweep makes, the outermost first

    def on_multirun_start(self, config: DictConfig, **kwargs: object) -> None:
        root = Path(config.hydra.sweep.dir).absolute()
        asked = OmegaConf.to_container(config.hydra.sweep, resolve=False)
        assert isinstance(asked, dict)
        if message := refusal(root, str(asked["subdir"])):
            print(f"error: {message}", file=sys.stderr, flush=True)
            sys.exit(FAILED_STATUS)  # Hydra turns any other exception of a callback into a warning
        self._made = [folder for folder in (*reversed(root.parents), root) if not folder.exists()]

    def on_multirun_end(self, config: DictConfig, **kwargs: object) -> None:
        root = Path(config.hydra.sweep.dir).absolute()
        failed = [read_json(path) for path in sorted(root.rglob(FAILURE_FILE))]
        remove_made(root, self._made)
        for job in failed:
            print(f"failed: {' '.join(job['overrides'])}: {job['error']}", file=sys.stderr)
        if self._plots and config.output is not None and Path(config.output).is_file():
            print(f"plot it: python infer/plot_sweep.py {argument('results', config.output)}", flush=True)
        if failed:
            sys.exit(FAILED_STATUS)


def refusal(root: Path, subdir: str) -> str | None:
    """Why a sweep cannot have its scratch folder here; None when it can."""
    advice = "Leave it out: nothing of a benchmark is kept there."
    if Path(subdir).is_absolute() or ".." in Path(subdir).parts:
        return f"hydra.sweep.subdir must be a folder below hydra.sweep.dir; got {subdir}. {advice}"
    if root.is_dir() and not any(root.iterdir()):
        return None
    if root.exists() or root.is_symlink():
        return f"hydra.sweep.dir must be a folder that is empty or not there yet; got {root}. {advice}"
    return None


def remove_made(root: Path, made: list[Path]) -> None:
    """Removes the sweep's own files below `root`, the folders that are then empty, and those of `made` that are.

    `root` was empty or absent when the sweep began, so a folder below it is the sweep's. Whatever else is there now
    (a result that output= names) stays, and the folders that hold it.
    """
    for place, _, names in os.walk(root, topdown=False):
        folder = Path(place)
        for name in set(names) & set(MADE_FILES):
            (folder / name).unlink(missing_ok=True)
        if folder != root:
            _remove_if_empty(folder)
    for outer in reversed(made):
        _remove_if_empty(outer)


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):  # it holds something, or is gone
        folder.rmdir()
