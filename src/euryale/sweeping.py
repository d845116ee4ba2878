"""What makes many jobs one sweep: where they go, what happens to one that fails, and what is said when all have ended?

Hydra (-m, or sweep=...) starts the jobs: here, in other processes or on a cluster. Its callback speaks at the end.
"""

import json
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from euryale import processes
from euryale.errors import UserError
from euryale.model.files import read_json
from euryale.model.locate import output_root
from euryale.serving.ranking import (
    FAILURE_FILE,
    better,
    rank_jobs,
    ranking_table,
    record_failure,
    save_ranking,
    summary,
)

PLUGINS = {
    "joblib": "hydra_plugins.hydra_joblib_launcher",
    "submitit_local": "hydra_plugins.hydra_submitit_launcher",
    "submitit_slurm": "hydra_plugins.hydra_submitit_launcher",
    "optuna": "hydra_plugins.hydra_optuna_sweeper",
}
FAILED_STATUS = 2


def sweep_folder(output: str, name: str | None, now: str) -> str:
    """Where the jobs of a sweep go, by its name or by the time."""
    return str(output_root(output) / (name or f"sweep-{now}"))


# Registered on import, so that job processes, which unpickle what refers to this module, know them too.
OmegaConf.register_new_resolver("sweep_folder", sweep_folder, replace=True)
OmegaConf.register_new_resolver("better", better, replace=True)


def settle_arguments(arguments: list[str]) -> list[str]:
    """The same arguments, with -m where sweep=... says as much.

    Raises UserError for a sweep that cannot be: its plugin is not installed, or torchrun started several of it.
    """
    chosen = [a.partition("=")[2] for a in arguments if a.lstrip("+").startswith("sweep=")]
    has_flag = any(a in ("-m", "--multirun") for a in arguments)
    is_sweep = has_flag or bool(set(chosen) - {"null"})
    for name in chosen:
        if name in PLUGINS and not _is_installed(PLUGINS[name]):
            raise UserError(
                f"sweep={name} needs a plugin of Hydra that is not installed: pip install 'euryale[sweep]'."
            )
    if is_sweep and processes.count() > 1:
        raise UserError(
            f"a sweep starts its own jobs, and torchrun started {processes.count()} processes of it. Start it without "
            "torchrun (sweep=submitit_slurm for a cluster), or train one setting at a time with torchrun."
        )
    return ["-m", *arguments] if is_sweep and not has_flag else arguments


def give_up_job(error: str) -> None:
    """Notes that this job failed and lets the others go on. The sweeper sees no number, which is a failure to it."""
    hydra = HydraConfig.get()
    print(f"error: {error}", file=sys.stderr, flush=True)
    record_failure(Path(hydra.runtime.output_dir), error, own_overrides(hydra))


def own_overrides(hydra: HydraConf) -> list[str]:
    """What was set for this job alone: all but what the command line gave to every job, where Hydra kept that."""
    kept = Path(hydra.sweep.dir) / "multirun.yaml"
    given = OmegaConf.load(kept).hydra.overrides.task if kept.is_file() else []  # a search keeps none
    values = dict(override.split("=", 1) for override in given if "=" in override)
    fixed = {key for key, value in values.items() if value.startswith("[") or not set(",(") & set(value)}
    return [override for override in hydra.overrides.task if override.partition("=")[0] not in fixed]


def swept() -> dict[str, str]:
    """What a sweep set for this job alone, by setting; nothing outside of a sweep."""
    hydra = HydraConfig.get()
    if hydra.mode != RunMode.MULTIRUN:
        return {}
    return {key: value for key, _, value in (override.partition("=") for override in own_overrides(hydra))}


class BenchEnd(Callback):
    """Removes the folder that Hydra made for a sweep of benchmarks, whose results are in output=FILE.jsonl.

    Ends with status 2 when some jobs failed. `plots`: infer/plot.py draws such results.
    """

    def __init__(self, plots: bool = True) -> None:
        self._plots = plots

    def on_multirun_end(self, config: DictConfig, **kwargs: object) -> None:
        root = Path(config.hydra.sweep.dir)
        failed = [read_json(path) for path in sorted(root.rglob(FAILURE_FILE))]
        shutil.rmtree(root, ignore_errors=True)
        for job in failed:
            print(f"failed: {' '.join(job['overrides'])}: {job['error']}", file=sys.stderr)
        if self._plots and config.output is not None and Path(config.output).is_file():
            print(f"plot it: python infer/plot.py results={config.output}", flush=True)
        if failed:
            sys.exit(FAILED_STATUS)


class Ranking(Callback):
    """Ranks the jobs when all have ended; ends with status 2 when some of them failed."""

    def on_multirun_end(self, config: DictConfig, **kwargs: object) -> None:
        root = Path(config.hydra.sweep.dir)
        try:
            jobs = rank_jobs(root, config.metric)
        except UserError as error:  # not even one folder: each job was refused by Hydra itself
            print(f"error: {error}", file=sys.stderr)
            sys.exit(FAILED_STATUS)
        print("\n" + ranking_table(jobs, config.metric))
        print("\n" + "\n".join(str(path) for path in save_ranking(root, jobs, config.metric)))
        found = summary(root, jobs, config.metric)
        print(json.dumps(found), flush=True)
        if found["finished"] != len(jobs):
            sys.exit(FAILED_STATUS)


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package of all plugins is missing
        return False
