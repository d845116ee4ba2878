"""Ranking of the jobs of a sweep by a number of their reports.

A job is any folder below that holds a run's settings, or the record of a failure. One without a report is listed as
unfinished, and never in the way of the others.
"""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from euryale.errors import UserError, check_option
from euryale.report.format import nearest_calibration, number
from euryale.report.tables import align
from euryale.system.files import read_json, write_atomically, write_json
from euryale.system.paths import argument

METRICS = ("tau", "tau_16", "speedup", "speedup_vs_hf", "tokens_per_s", "held_out_loss_nats")
LOWER_IS_BETTER = ("held_out_loss_nats",)
CONFIG_FILE, FAILURE_FILE = "config.yaml", "failure.json"
RESULT_FILE = "result.json"  # of a run that decodes nothing and has no report: a pretrained base, a divided one
OWN_SETTINGS = ("name", "output", "resume", "wandb", "metric")  # they name a run and decide nothing
MAX_LABEL = 60  # characters of a point's label in the plot
COLUMNS = {
    "tau": "tau",
    "tau_16": "tau of 16 nodes",
    "speedup": "over AR",
    "tokens_per_s": "tokens/s",
    "held_out_loss_nats": "loss (nats)",
}


@dataclass
class Job:
    """One folder of a sweep."""

    folder: Path
    name: str  # of the folder, below the sweep's
    state: str  # finished | unfinished | failed
    settings: dict[str, object] = field(default_factory=dict)  # dotted keys
    numbers: dict[str, Any] = field(default_factory=dict)
    note: str = ""  # why there are no numbers


def check_metric(metric: str) -> None:
    check_option("metric", metric, METRICS)


def better(metric: str) -> str:
    """In which direction a sweeper should go."""
    return "minimize" if metric in LOWER_IS_BETTER else "maximize"


def numbers_of(report: dict[str, Any]) -> dict[str, Any]:
    """The numbers that a run is judged by, from its report.json."""
    bench, evaluation = report["bench"], report["evaluation"]
    calibration = nearest_calibration(report.get("calibration"), evaluation["temperature"]) or {}
    return {
        "tau": evaluation["tau"],  # of the tree that this machine's clock chose
        "tau_16": calibration.get("tau", {}).get("16"),  # counted on the calibration text: the same on any machine
        "speedup": bench["speedup_vs_ar"],
        "speedup_vs_hf": bench["speedup_vs_hf"],
        "tokens_per_s": bench["contenders"]["euryale"]["tokens_per_s"],
        "temperature": bench["temperature"],
        "num_nodes": bench["num_nodes"],
        "identical": evaluation["identical"],
        "total": evaluation["total"],
        "repeated_8grams": evaluation["repeated_8grams"],
        "held_out_loss_nats": report["training"]["final_loss_nats"],
    }


def record_failure(folder: Path, error: str, overrides: list[str]) -> None:
    """What a job leaves that failed: without it, the sweep would not know that it was tried."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / FAILURE_FILE, {"error": error, "overrides": overrides})


def rank_jobs(root: Path, metric: str) -> list[Job]:
    """All jobs below `root`: the finished ones first, the best at the top (of equals, the one with fewer parameters).

    Raises UserError when there is no job at all.
    """
    check_metric(metric)
    found = {path.parent for name in (CONFIG_FILE, FAILURE_FILE) for path in root.rglob(name)}
    jobs = [_read_job(folder, root) for folder in sorted(found)]
    if not jobs:
        raise UserError(
            f"runs={root}: no run below this folder has a {CONFIG_FILE}. Give the folder of a sweep, as "
            "python train/run.py -m ... names it, or checkpoints for all runs."
        )
    sign = 1 if metric in LOWER_IS_BETTER else -1

    def place(job: Job) -> tuple:
        value: float | None = job.numbers.get(metric)
        return (value is None, sign * (value or 0.0), job.numbers.get("num_parameters") or 0, _natural(job.name))

    return sorted(jobs, key=place)


def differing_settings(jobs: list[Job]) -> list[str]:
    """The settings in which these jobs differ, dotted."""
    keys = sorted({key for job in jobs for key in job.settings})
    known = [job for job in jobs if job.settings]
    return [k for k in keys if k not in OWN_SETTINGS and len({repr(job.settings.get(k)) for job in known}) > 1]


def ranking_table(jobs: list[Job], metric: str) -> str:
    """For people: the finished jobs in their order, then what became of the others."""
    keys = differing_settings(jobs)
    columns = COLUMNS if metric in COLUMNS else {metric: metric} | COLUMNS
    rows = []
    for place, job in enumerate((job for job in jobs if job.numbers), start=1):
        values = [number(job.numbers.get(c), 1 if c == "tokens_per_s" else 3) for c in columns]
        size = f"{job.numbers['num_parameters'] / 1e6:.2f} M" if job.numbers.get("num_parameters") else "-"
        rows.append([f"{place}. {job.name}", *(_short(job.settings.get(k)) for k in keys), *values, size])
    header = ["job", *keys, *columns.values(), "head parameters"]
    blocks = [align(header, rows)] if rows else []
    others = [f"{job.state}: {job.name}: {job.note}" for job in jobs if not job.numbers]
    if others:
        blocks.append("\n".join(others))
    if rows and jobs[0].numbers.get(metric) is not None:
        settings = " ".join(f"{k}={_short(jobs[0].settings.get(k))}" for k in keys)
        blocks.append(f"best {metric}: {jobs[0].name}" + (f" ({settings})" if settings else ""))
    return "\n\n".join(blocks)


def save_ranking(root: Path, jobs: list[Job], metric: str) -> list[Path]:
    """Writes ranking.csv and, when anything was decoded, pareto.png into `root`; returns their paths."""
    from euryale.report.plot_pareto import pareto_plot  # here: every script reads METRICS, none waits for matplotlib

    files = {"ranking.csv": _csv(jobs, metric).encode()}
    tau = "tau_16" if metric == "tau_16" else "tau"
    # Trees of 16 nodes are not always among those that were counted.
    if finished := [job for job in jobs if job.numbers.get(tau) is not None]:
        keys = differing_settings(jobs)
        points = [
            {
                "label": _label(job, keys),
                "num_parameters": job.numbers.get("num_parameters") or 0,
                tau: job.numbers[tau],
                "tokens_per_s": job.numbers["tokens_per_s"],
            }
            for job in finished
        ]
        files["pareto.png"] = pareto_plot(points, tau)
    for name, content in files.items():
        with write_atomically(root / name) as staged:
            staged.write_bytes(content)
    return [root / name for name in files]


def summary(root: Path, jobs: list[Job], metric: str) -> dict[str, object]:
    """The last line on stdout."""
    counts = {state: sum(job.state == state for job in jobs) for state in ("finished", "unfinished", "failed")}
    best = jobs[0] if jobs and jobs[0].numbers.get(metric) is not None else None
    return {
        "runs": str(root),
        "best": None if best is None else str(best.folder),
        "metric_name": metric,
        "metric": None if best is None else best.numbers[metric],
        **counts,
    }


def _read_job(folder: Path, root: Path) -> Job:
    name = folder.relative_to(root).as_posix()
    job = Job(folder, folder.name if name == "." else name, "unfinished")
    try:
        job.settings = _flat(yaml.safe_load((folder / CONFIG_FILE).read_text(encoding="utf-8")) or {})
    except FileNotFoundError:
        pass
    except (OSError, ValueError, AttributeError, yaml.YAMLError) as error:  # AttributeError: no mapping
        job.note = f"{CONFIG_FILE} cannot be read: {error}"
    written = [file for file in ("report.json", RESULT_FILE, FAILURE_FILE) if (folder / file).is_file()]
    try:
        if written:
            _read_result(job, written[0])
        else:
            job.note = job.note or _how_far(folder)
    except (UserError, KeyError, TypeError, AttributeError) as error:
        job.note = f"{written[0]} cannot be used ({error})"
    return job


def _read_result(job: Job, file: str) -> None:
    """What the job's last file says. A damaged one raises UserError, KeyError, TypeError or AttributeError."""
    content = read_json(job.folder / file)
    if file == FAILURE_FILE:
        job.note = f"{' '.join(content.get('overrides', []))}: {content.get('error', 'unknown')}"
        job.state = "failed"
        return
    numbers = content
    if file == "report.json":
        numbers = numbers_of(content) | {"num_parameters": content["heads"].get("num_parameters")}
    for name, value in numbers.items():
        if value is not None and not isinstance(value, int | float):
            raise TypeError(f"{name} is no number: {value!r:.40}")
    job.numbers, job.state = numbers, "finished"


def _how_far(folder: Path) -> str:
    saves = sorted((folder / "resume").glob("step-*"))
    if not saves:
        return f"nothing saved yet; python train/run.py {argument('resume', folder)} begins again"
    step = int(saves[-1].name.partition("-")[2])
    return f"saved after step {step}; python train/run.py {argument('resume', folder)} goes on"


def _csv(jobs: list[Job], metric: str) -> str:
    keys = differing_settings(jobs)
    names = list(dict.fromkeys([metric, *METRICS, "num_parameters", "num_nodes", "temperature", "identical", "total"]))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["rank", "job", "state", *keys, *names, "note"])
    for place, job in enumerate(jobs, start=1):
        values = [job.numbers.get(name, "") for name in names]
        settings = [job.settings.get(key, "") for key in keys]
        writer.writerow([place if job.numbers else "", job.name, job.state, *settings, *values, job.note])
    return out.getvalue()


def _flat(settings: Mapping, prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _short(value: object) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 24 else f"...{text[-21:]}"


def _label(job: Job, keys: list[str]) -> str:
    """What sets this job apart, in a plot: its settings, or its name where they would fill the picture."""
    label = ", ".join(f"{k.rpartition('.')[2]}={_short(job.settings.get(k))}" for k in keys)
    return label if 0 < len(label) <= MAX_LABEL else job.name


def _natural(name: str) -> tuple:
    return (int(name), "") if name.isdigit() else (1 << 30, name)
