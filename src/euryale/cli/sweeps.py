"""Sweeps: where their jobs go, what happens to one that fails, and what is said when all have ended.

Hydra (-m, or sweep=...) starts the jobs: here, in other processes or on a cluster. Its callback speaks at the end.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path

from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from euryale.cli import ctrl_c
from euryale.errors import UserError
from euryale.report.ranking import (
    better,
    rank_jobs,
    ranking_table,
    record_failure,
    save_ranking,
    summary,
)
from euryale.system import processes
from euryale.system.files import check_writable
from euryale.system.paths import argument, output_root

PLUGINS = {
    "joblib": "hydra_plugins.hydra_joblib_launcher",
    "submitit_local": "hydra_plugins.hydra_submitit_launcher",
    "submitit_slurm": "hydra_plugins.hydra_submitit_launcher",
    "ray": "hydra_plugins.hydra_ray_launcher",
    "optuna": "hydra_plugins.hydra_optuna_sweeper",
}
# It asks for boto3 and cloudpickle<3, which only its launcher for AWS uses: an extra cannot leave them out.
INSTALL = {"ray": "pip install ray && pip install --no-deps hydra-ray-launcher"}
FAILED_STATUS = 2
RAW_ERRORS = "HYDRA_FULL_ERROR"  # Hydra passes exceptions on where this is 1, instead of printing them and ending


def sweep_folder(output: str, name: str | None, now: str) -> str:
    """Where the jobs of a sweep go, by its name or by the time."""
    return str(output_root(output) / (name or f"sweep-{now}"))


# Registered on import, so that job processes, which unpickle what refers to this module, know them too.
OmegaConf.register_new_resolver("sweep_folder", sweep_folder, replace=True)
OmegaConf.register_new_resolver("better", better, replace=True)


def settle_arguments(arguments: list[str]) -> list[str]:
    """The same arguments, flags before settings (argparse takes none of those after `a=1 -m`), with -m where
    sweep=... says as much.

    Raises UserError for a plugin that is not installed, and where torchrun started several processes.
    """
    chosen = [a.partition("=")[2] for a in arguments if a.lstrip("+").startswith("sweep=")]
    has_flag = any(a in ("-m", "--multirun") for a in arguments)
    is_sweep = has_flag or bool(set(chosen) - {"null"})
    for name in chosen:
        if name in PLUGINS and not _is_installed(PLUGINS[name]):
            command = INSTALL.get(name, "pip install 'euryale[sweep]'")
            raise UserError(f"sweep={name} needs a plugin of Hydra that is not installed: {command}.")
    if is_sweep and processes.count() > 1:
        raise UserError(
            f"a sweep starts its own jobs, and torchrun started {processes.count()} processes of it. Start it without "
            "torchrun (sweep=submitit_slurm for a cluster), or train one setting at a time with torchrun."
        )
    arguments = sorted(arguments, key=lambda a: not a.startswith("-") and ("=" in a or a.startswith("~")))
    return ["-m", *arguments] if is_sweep and not has_flag else arguments


@contextmanager
def launching() -> Iterator[None]:
    """Has Hydra pass on what it raises. What the launcher of a sweep raises ends it with one message, a ranking of what
    there is, and status 2.

    Not what a job raises, which is that job's failure: a cluster that grants no such thing, a process that was killed,
    a person's Ctrl-C (status 130).
    """
    wants_traceback = RAW_ERRORS in os.environ
    os.environ.setdefault(RAW_ERRORS, "1")
    HydraConfig.instance().cfg = None  # of an earlier run in this process, which may have been a sweep
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if wants_traceback or not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
            raise
        _end_early(error)
        sys.exit(ctrl_c.STATUS if isinstance(error, KeyboardInterrupt) else FAILED_STATUS)
    finally:
        if not wants_traceback:
            os.environ.pop(RAW_ERRORS, None)


def _end_early(error: BaseException) -> None:
    hydra = HydraConfig.get()
    root, name = Path(hydra.sweep.dir), hydra.runtime.choices.get("sweep")
    later = f"python infer/rank.py {argument('runs', root)} ranks what ends later."
    if isinstance(error, KeyboardInterrupt):
        message = f"interrupted. Jobs of a cluster go on; {later}"
    elif isinstance(error, HydraException):  # a wrong setting, which says so
        message = f"error: {error}"
    else:
        message = f"error: the sweep ended before its jobs did: {str(error).strip() or type(error).__name__}\n"
        message += f"{RAW_ERRORS}=1 shows where. "
        if name in PLUGINS:
            message += f"What a job asks for stands in conf/sweep/{name}.yaml; hydra.launcher.KEY=VALUE changes it. "
        message += later
    print(message, file=sys.stderr, flush=True)
    with suppress(UserError):  # no job has begun
        print_ranking(root, hydra.callbacks["ranking"]["metric"])


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


class Ranking(Callback):
    """Ranks the jobs when all have ended; ends with status 2 when some of them failed."""

    def __init__(self, metric: str) -> None:
        self.metric = metric

    def on_multirun_start(self, config: DictConfig, **kwargs: object) -> None:
        """Notes where the sweep is, for launching. Ends the process where no job could write there."""
        try:
            check_writable(Path(config.hydra.sweep.dir), f"output={config.output}")
        except UserError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            sys.exit(FAILED_STATUS)  # Hydra turns any other exception of a callback into a warning
        begun = deepcopy(config)
        with open_dict(begun):
            begun.hydra.sweep.dir = str(config.hydra.sweep.dir)  # its time was read first: one folder for all jobs
            begun.hydra.callbacks.ranking.metric = self.metric
        HydraConfig.instance().set_config(begun)

    def on_multirun_end(self, config: DictConfig, **kwargs: object) -> None:
        root = Path(config.hydra.sweep.dir)
        try:
            are_finished = print_ranking(root, self.metric)
        except UserError as error:  # not even one folder: each job was refused by Hydra itself
            print(f"error: {error}", file=sys.stderr)
            sys.exit(FAILED_STATUS)
        if not are_finished:
            sys.exit(FAILED_STATUS)


def print_ranking(root: Path, metric: str) -> bool:
    """Table, files and the last line on stdout; whether every job has finished. Raises UserError without any job."""
    if "ray" in sys.modules:  # what its jobs say arrives late, until it is shut down
        sys.modules["ray"].shutdown()
    jobs = rank_jobs(root, metric)
    print("\n" + ranking_table(jobs, metric))
    print("\n" + "\n".join(str(path) for path in save_ranking(root, jobs, metric)))
    found = summary(root, jobs, metric)
    print(json.dumps(found), flush=True)
    return found["finished"] == len(jobs)


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package of all plugins is missing
        return False
