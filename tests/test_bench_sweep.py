"""A sweep of benchmarks removes what it has made, and never more."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf
from scripts import Result, run_script

from euryale.cli.bench_sweep import BenchSweep, refusal
from euryale.system.files import write_json

Snapshot = dict[str, bytes | None]


def everything(folder: Path) -> Snapshot:
    """Every file below with its content, every folder with None."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def config_of(root: Path, subdir: str = "${hydra.job.num}", output: str | None = None) -> DictConfig:
    return OmegaConf.create({"hydra": {"sweep": {"dir": str(root), "subdir": subdir}}, "output": output})


def sweep(root: Path, jobs: Callable[[], None], subdir: str = "${hydra.job.num}") -> int:
    """What Hydra does around `jobs`; the status that the callback ends with."""
    callback = BenchSweep(plots=False)
    try:
        callback.on_multirun_start(config_of(root, subdir))
        root.mkdir(parents=True, exist_ok=True)
        (root / "multirun.yaml").write_text("hydra: {}\n")
        for number in ("0", "1"):
            (root / number).mkdir()
        jobs()
        callback.on_multirun_end(config_of(root, subdir))
    except SystemExit as ending:
        assert isinstance(ending.code, int)
        return ending.code
    return 0


@pytest.mark.parametrize("failed", [False, True])
def test_a_sweep_leaves_nothing_of_its_own(tmp_path: Path, failed: bool, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "made" / "for" / "it"

    def jobs() -> None:
        if failed:
            write_json(root / "1" / "failure.json", {"error": "no such thing", "overrides": ["limit=0"]})

    assert sweep(root, jobs) == (2 if failed else 0)
    assert list(tmp_path.iterdir()) == []
    assert ("failed: limit=0: no such thing" in capsys.readouterr().err) == failed


def test_results_in_the_folder_of_the_sweep_stay(tmp_path: Path) -> None:
    root = tmp_path / "sweep"

    def jobs() -> None:
        (root / "results.jsonl").write_text("{}\n")
        (root / "0" / "steps.jsonl").write_text("{}\n")

    assert sweep(root, jobs) == 0
    assert everything(root) == {"results.jsonl": b"{}\n", "0": None, "0/steps.jsonl": b"{}\n"}


def test_an_empty_folder_that_was_there_stays(tmp_path: Path) -> None:
    root = tmp_path / "mine"
    root.mkdir()
    assert sweep(root, lambda: None) == 0
    assert list(tmp_path.iterdir()) == [root] and list(root.iterdir()) == []


def folder_with_files(tmp_path: Path) -> Path:
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "failure.json").write_text("not ours")
    (tmp_path / "multirun.yaml").write_text("not ours")
    (tmp_path / "results.jsonl").write_text("{}\n")
    return tmp_path


def link_to_it(tmp_path: Path) -> Path:
    target = tmp_path / "target"
    target.mkdir()
    folder_with_files(target)
    link = tmp_path / "link"
    link.symlink_to(target)
    return link


@pytest.mark.parametrize("make", [folder_with_files, link_to_it])
def test_a_folder_that_holds_something_is_refused_and_untouched(
    tmp_path: Path, make: Callable[[Path], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """hydra.sweep.dir=. emptied the present folder."""
    root = make(tmp_path)
    before = everything(tmp_path)
    assert sweep(root, lambda: None) == 2
    assert everything(tmp_path) == before
    assert f"hydra.sweep.dir must be a folder that is empty or not there yet; got {root}." in capsys.readouterr().err


@pytest.mark.parametrize("name", ["home", "project", "src", "above"])
def test_homes_and_the_project_are_no_scratch_folders(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    project = Path(__file__).resolve().parents[1]
    place = {"home": Path.home(), "project": project, "src": project / "src", "above": project.parent}[name]
    if name == "home" and not (place.is_dir() and any(place.iterdir())):
        pytest.skip("this user's home folder holds nothing")
    assert "hydra.sweep.dir must be a folder" in str(refusal(place, "0"))
    assert sweep(place, lambda: None) == 2


@pytest.mark.parametrize("subdir", ["/elsewhere", "../elsewhere", "a/../../b"])
def test_jobs_stay_below_the_folder_of_the_sweep(tmp_path: Path, subdir: str) -> None:
    assert sweep(tmp_path / "sweep", lambda: None, subdir) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sweep").write_text("mine")
    assert sweep(tmp_path / "sweep", lambda: None) == 2
    assert (tmp_path / "sweep").read_text() == "mine"


def bench(*arguments: str) -> Result:
    return run_script("infer/bench.py", "-m", "checkpoint=no-such-checkpoint", "limit=1,2", *arguments)


@pytest.mark.parametrize("where", [".", "made/here"])
def test_a_whole_sweep_deletes_nothing_of_the_folder_it_runs_in(
    tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "results.jsonl").write_text("{}\n")
    (tmp_path / "0").mkdir()
    monkeypatch.chdir(tmp_path)
    before = everything(tmp_path)
    result = bench(f"hydra.sweep.dir={where}")
    assert result.status == 2 and "Traceback" not in result.err, result.err
    assert everything(tmp_path) == before
    expected = "hydra.sweep.dir must be" if where == "." else "failed: limit=1: checkpoint=no-such-checkpoint"
    assert expected in result.err, result.err


def test_the_usual_scratch_folder_is_gone_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    result = bench()
    assert result.status == 2 and result.err.count("failed: limit=") == 2, result.err
    assert os.listdir(tmp_path) == []
