"""A sweep ends with a ranking under every launcher, whatever becomes of single jobs.

Every sweep has two tiny jobs. Those of joblib and submitit run in processes of their own.
"""

import csv
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf
from scripts import SMALL, Result, assert_refused, run_script, write_texts

from euryale.cli import sweeps
from euryale.cli.sweeps import settle_arguments, sweep_folder
from euryale.errors import UserError
from euryale.report.plot_pareto import frontier, pareto_plot
from euryale.report.ranking import better, differing_settings, numbers_of, rank_jobs, ranking_table, save_ranking
from euryale.system.files import read_json, write_json


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sweeps")
    write_texts(place)
    return place


@pytest.fixture(scope="session")
def arguments(place: Path, tiny_llama_folder: Path) -> list[str]:
    return [
        "base=hf", f"base.path={tiny_llama_folder}", "data=files", f"data.files={place}/texts.jsonl",
        f"output={place}", *SMALL, "data.regenerate=false", "optim.num_steps=2",
    ]  # fmt: skip


@pytest.fixture(scope="session")
def swept(arguments: list[str]) -> Result:
    """Two jobs of the basic launcher; the widths make heads of two sizes."""
    return run_script("train/run.py", "-m", *arguments, "name=basic", "heads.width=1,2")


@pytest.fixture
def copied(swept: Result, place: Path, tmp_path: Path) -> Path:
    assert swept.status == 0
    return Path(shutil.copytree(place / "basic", tmp_path / "sweep"))


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "ranking.csv").open() as file:
        return list(csv.DictReader(file))


# Whole sweeps


def test_a_sweep_ends_with_a_ranking_of_its_jobs(swept: Result, place: Path) -> None:
    assert swept.status == 0, swept.err
    folder = place / "basic"
    assert {path.name for path in folder.iterdir()} == {"0", "1", "multirun.yaml", "ranking.csv", "pareto.png"}
    taus = {name: read_json(folder / name / "report.json")["evaluation"]["tau"] for name in ("0", "1")}
    best = max(taus, key=lambda name: (taus[name], -int(name)))  # of equals the smaller, which is job 0
    last = swept.last_line
    assert last["best"] == str(folder / best) and last["metric"] == taus[best] and last["metric_name"] == "tau"
    assert (last["finished"], last["unfinished"], last["failed"]) == (2, 0, 0)
    assert "heads.width" in swept.out and f"best tau: {best} (heads.width=" in swept.out
    assert [row["job"] for row in rows_of(folder)][0] == best
    assert {row["heads.width"] for row in rows_of(folder)} == {"1.0", "2.0"}


# One process of joblib's takes both jobs; each of submitit's has its own.
LAUNCHERS = {"basic": [], "joblib": ["hydra.launcher.batch_size=2"], "submitit_local": []}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_job_that_fails_does_not_lose_the_other(arguments: list[str], place: Path, launcher: str) -> None:
    name = f"half-{launcher}"
    settings = [*arguments, f"name={name}", *LAUNCHERS[launcher], "optim.lr=-1,1e-3"]
    result = run_script("train/run.py", f"sweep={launcher}", *settings)
    assert result.status == 2, result.out + result.err
    assert read_json(place / name / "0" / "failure.json") == {
        "error": "optim.lr must be a positive learning rate; got -1.0.",
        "overrides": ["optim.lr=-1"],
    }
    assert read_json(place / name / "1" / "report.json")["training"]["steps"] == 2
    assert result.last_line["best"] == str(place / name / "1")
    assert (result.last_line["finished"], result.last_line["failed"]) == (1, 1)
    assert "failed: 0: optim.lr=-1: optim.lr must be a positive learning rate; got -1.0." in result.out


def test_a_search_looks_for_the_lowest_loss(arguments: list[str], place: Path) -> None:
    result = run_script(
        "train/run.py", "sweep=optuna", *arguments, "name=search", "metric=held_out_loss_nats",
        "hydra.sweeper.n_trials=2",
    )  # fmt: skip
    assert result.status == 0, result.err
    losses = [read_json(place / "search" / n / "report.json")["training"]["final_loss_nats"] for n in ("0", "1")]
    found = OmegaConf.load(place / "search" / "optimization_results.yaml")
    assert found.best_value == min(losses) == result.last_line["metric"]
    assert set(found.best_params) == {"optim.lr", "heads.num_layers"}


def test_a_failed_trial_does_not_end_a_search(arguments: list[str], place: Path) -> None:
    result = run_script(
        "train/run.py", "sweep=optuna", *arguments, "name=half-search", "hydra.sweeper.n_trials=2",
        "hydra.sweeper.sampler.seed=0", "hydra.sweeper.params=null", "optim.lr=choice(-1,1e-3)",
    )  # fmt: skip
    assert result.status == 2, result.out + result.err
    assert (result.last_line["finished"], result.last_line["failed"]) == (1, 1)


def test_a_bug_in_one_job_is_a_failure_of_that_job(
    arguments: list[str], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no such luck")

    monkeypatch.setattr("euryale.cli.pipeline.make_heads", broken)
    result = run_script("train/run.py", "-m", *arguments, "name=bug", "seed=0,1")
    assert result.status == 2 and result.last_line["failed"] == 2 and result.last_line["best"] is None
    assert "Traceback" in result.err and "no such luck" in result.out
    assert not (place / "bug" / "0" / "config.yaml").exists()


def test_a_launcher_that_gives_up_does_not_lose_what_has_ended(
    arguments: list[str], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Hydra loads its plugins anew: an import would name another class.
    basic = Plugins.instance().class_name_to_class["hydra._internal.core_plugins.basic_launcher.BasicLauncher"]
    launch = basic.launch

    def lost(launcher: object, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> None:
        launch(launcher, job_overrides[:1], initial_job_idx)
        raise RuntimeError("the second worker was killed")

    monkeypatch.setattr(basic, "launch", lost)
    result = run_script("train/run.py", "-m", *arguments, "name=lost", "seed=0,1", "metric=held_out_loss_nats")
    assert result.status == 2 and "Traceback" not in result.err
    assert "error: the sweep ended before its jobs did: the second worker was killed" in result.err
    assert result.last_line["best"] == str(place / "lost" / "0")
    assert result.last_line["metric_name"] == "held_out_loss_nats"
    assert (place / "lost" / "ranking.csv").is_file() and "HYDRA_FULL_ERROR" not in os.environ


def test_a_person_who_will_not_wait_for_a_launcher_is_told_what_goes_on(
    arguments: list[str], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wait(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    basic = Plugins.instance().class_name_to_class["hydra._internal.core_plugins.basic_launcher.BasicLauncher"]
    monkeypatch.setattr(basic, "launch", wait)
    result = run_script("train/run.py", "-m", *arguments, "name=waiting", "seed=0,1")
    assert result.status == 130 and "Traceback" not in result.err
    assert f"interrupted. Jobs of a cluster go on; python infer/rank.py runs={place / 'waiting'}" in result.err


def test_a_cluster_that_cannot_be_asked_is_one_message(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # wherever the tests run, there is no srun
    result = run_script("train/run.py", "sweep=submitit_slurm", *arguments, "name=cluster", "seed=0,1")
    assert_refused(result, "srun", "conf/sweep/submitit_slurm.yaml", "hydra.launcher.KEY=VALUE")


def test_a_setting_that_one_job_cannot_read_is_refused_before_any(arguments: list[str], place: Path) -> None:
    result = run_script("train/run.py", "-m", *arguments, "name=unread", "heads.width=1,wide")
    assert_refused(result, "error: heads.width must be a number; got wide.")
    assert not (place / "unread" / "0").exists()


# infer/rank.py


def test_unfinished_and_damaged_runs_are_listed_and_not_fatal(copied: Path) -> None:
    (copied / "0" / "report.json").unlink()
    (copied / "2").mkdir()
    shutil.copy(copied / "0" / "config.yaml", copied / "2")
    damaged = Path(shutil.copytree(copied / "1", copied / "3"))
    (damaged / "report.json").write_text("{")
    Path(shutil.copytree(copied / "1", copied / "4"), "config.yaml").write_text("a: [")
    result = run_script("infer/rank.py", f"runs={copied}")
    assert result.status == 0, result.err
    assert f"unfinished: 0: saved after step 2; python train/run.py resume={copied / '0'} goes on" in result.out
    assert "unfinished: 2: nothing saved yet" in result.out
    assert "unfinished: 3: report.json cannot be used" in result.out
    assert (result.last_line["finished"], result.last_line["unfinished"]) == (2, 3)
    assert [row["state"] for row in rows_of(copied)] == ["finished"] * 2 + ["unfinished"] * 3


def test_runs_are_ranked_by_the_metric_that_is_asked_for(copied: Path, tmp_path: Path) -> None:
    for name, tau, loss in (("0", 3.0, 2.0), ("1", 2.0, 1.0)):
        report = read_json(copied / name / "report.json")
        report["evaluation"]["tau"], report["training"]["final_loss_nats"] = tau, loss
        write_json(copied / name / "report.json", report)
    out = tmp_path / "out"
    for metric, best in (("tau", "0"), ("held_out_loss_nats", "1")):
        result = run_script("infer/rank.py", f"runs={copied}", f"metric={metric}", f"output={out}")
        assert result.last_line["best"] == str(copied / best), metric
    assert sorted(path.name for path in out.iterdir()) == ["pareto.png", "ranking.csv"]
    assert (out / "pareto.png").read_bytes().startswith(b"\x89PNG")
    assert (better("tau"), better("held_out_loss_nats")) == ("maximize", "minimize")


def test_nothing_to_rank_is_refused(tmp_path: Path) -> None:
    assert_refused(run_script("infer/rank.py", f"runs={tmp_path}"), "no run below this folder")
    assert_refused(run_script("infer/rank.py", f"runs={tmp_path}/none"), "there is no such folder")
    assert_refused(
        run_script("infer/rank.py", f"runs={tmp_path}", "metric=beauty"), "metric must be one of tau", "got beauty"
    )


def test_only_what_differs_is_shown(copied: Path) -> None:
    jobs = rank_jobs(copied, "tau")
    assert differing_settings(jobs) == ["heads.width"]
    assert "optim.lr" not in ranking_table(jobs, "tau")
    report = read_json(copied / "0" / "report.json")
    assert numbers_of(report)["tokens_per_s"] == report["bench"]["contenders"]["euryale"]["tokens_per_s"]


def test_the_frontier_holds_what_nothing_smaller_beats() -> None:
    points = [{"num_parameters": size, "tau": tau} for size, tau in ((3, 2.0), (1, 1.0), (2, 2.5), (2, 1.5), (4, 3.0))]
    assert frontier(points, "tau") == [1, 2, 4]
    points = [point | {"tokens_per_s": 1.0, "label": "x"} for point in points]
    assert pareto_plot(points).startswith(b"\x89PNG")


def test_the_plot_shows_the_tau_that_was_ranked_by(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("0", "1"):
        report = read_json(copied / name / "report.json")
        for calibration in report["calibration"]["calibrations"]:
            calibration["tau"]["16"] = 3.0 + int(name)
        write_json(copied / name / "report.json", report)
    drawn: dict[str, list] = {}
    monkeypatch.setattr(
        "euryale.report.plot_pareto.pareto_plot", lambda points, tau: drawn.update({tau: points}) or b""
    )
    for metric in ("tau", "tau_16", "held_out_loss_nats"):
        jobs = rank_jobs(copied, metric)
        save_ranking(copied, jobs, metric)
    assert {key: [point[key] for point in points] for key, points in drawn.items()} == {
        key: [job.numbers[key] for job in rank_jobs(copied, metric) if key in job.numbers]
        for key, metric in (("tau", "held_out_loss_nats"), ("tau_16", "tau_16"))
    }


def test_runs_without_a_tree_of_sixteen_nodes_are_ranked_too(copied: Path) -> None:
    for name in ("0", "1"):
        report = read_json(copied / name / "report.json")
        for calibration in report["calibration"]["calibrations"]:
            calibration["tau"].pop("16", None)
        write_json(copied / name / "report.json", report)
    result = run_script("infer/rank.py", f"runs={copied}", "metric=tau_16")
    assert result.status == 0, result.err
    assert (result.last_line["best"], result.last_line["finished"]) == (None, 2)


def test_runs_that_differ_in_much_are_named_in_the_plot(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[dict] = []
    monkeypatch.setattr("euryale.report.plot_pareto.pareto_plot", lambda points, tau: drawn.extend(points) or b"")
    jobs = rank_jobs(copied, "tau")
    jobs[0].settings |= {f"heads.setting_{i}": i for i in range(9)}
    save_ranking(copied, jobs, "tau")
    assert [point["label"] for point in drawn] == [job.name for job in jobs]


# What cannot be


def test_a_sweep_under_torchrun_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for arguments in (["-m", "seed=0,1"], ["sweep=joblib"]):
        with pytest.raises(UserError, match="torchrun started 2 processes of it"):
            settle_arguments(arguments)
    assert settle_arguments(["seed=0", "sweep=null"]) == ["seed=0", "sweep=null"]


def test_a_launcher_that_is_not_installed_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("euryale.cli.sweeps.find_spec", lambda module: None)
    with pytest.raises(UserError, match=r"sweep=optuna needs a plugin .* pip install 'euryale\[sweep\]'"):
        settle_arguments(["sweep=optuna"])
    with pytest.raises(UserError, match="pip install ray && pip install --no-deps hydra-ray-launcher"):
        settle_arguments(["sweep=ray"])


def test_sweeps_go_below_the_project_by_name_or_time(tmp_path: Path) -> None:
    assert sweep_folder(str(tmp_path), "mine", "now") == str(tmp_path / "mine")
    assert sweep_folder(str(tmp_path), None, "2026") == str(tmp_path / "sweep-2026")
    assert Path(sweep_folder("checkpoints", None, "x")).is_absolute()


def test_a_launcher_needs_no_flag() -> None:
    assert settle_arguments(["sweep=basic", "seed=0,1"]) == ["-m", "sweep=basic", "seed=0,1"]
    assert settle_arguments(["-m", "sweep=basic"]) == ["-m", "sweep=basic"]


def test_an_error_after_a_sweep_in_the_same_process_is_not_the_sweep_s(monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = OmegaConf.create({"hydra": {"mode": "MULTIRUN"}})
    monkeypatch.setattr(HydraConfig.instance(), "cfg", sweep)
    monkeypatch.delenv(sweeps.RAW_ERRORS, raising=False)
    with pytest.raises(ValueError, match="a bug"), sweeps.launching():
        raise ValueError("a bug")
