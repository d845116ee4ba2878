"""A sweep of benchmarks becomes one file, one table and one picture; other files are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from scripts import run_script

from euryale.errors import UserError
from euryale.report.plot_sweep import sweep_plot
from euryale.report.sweep_results import read_sweep, series_of, sweep_table

PNG = b"\x89PNG\r\n"


def line(swept: dict[str, str] | None = None, speed: float = 100.0, **measured_with: object) -> dict[str, Any]:
    split = {"draft": 1.0, "verify": 5.0, "accept": 0.1, "commit": 0.1}
    own = {"tokens_per_s": speed, "tau": 1.8, "ms_per_step": 6.5, "split_ms": split, "peak_host_bytes": 2**29}
    contenders = {"euryale": own, "ar": {**own, "tokens_per_s": 60.0}, "hf_generate": {"tokens_per_s": 50.0}}
    known = {"num_nodes": 4, "max_depth": 2, "temperature": 0.0, "drafter": "heads", **measured_with}
    return {"swept": swept or {}, "contenders": contenders, "tau_by_depth": [0.5, 0.3], "speedup_vs_ar": 1.5, **known}


def file_of(folder: Path, *rows: object) -> Path:
    (folder / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "r.jsonl"


def test_what_was_swept_is_the_axis_and_the_rest_makes_series(tmp_path: Path) -> None:
    rows = [line({"tree.num_nodes": n, "drafter": d}) for d in ("heads", "none") for n in ("16", "4", "1")]
    sweep = read_sweep(file_of(tmp_path, *rows))
    assert sweep.by == "tree.num_nodes"
    assert {name: [p.value for p in points] for name, points in series_of(sweep.points).items()} == {
        "drafter=heads": [1.0, 4.0, 16.0],
        "drafter=none": [1.0, 4.0, 16.0],
    }
    by_drafter = read_sweep(tmp_path / "r.jsonl", "drafter")
    assert set(series_of(by_drafter.points)) == {f"tree.num_nodes={n}" for n in (1, 4, 16)}
    assert {p.value for p in by_drafter.points} == {"heads", "none"}, "names are places on the axis too"
    assert sweep_plot(sweep).startswith(PNG) and sweep_plot(by_drafter).startswith(PNG)


def test_single_runs_are_told_apart_by_what_they_measured_with(tmp_path: Path) -> None:
    rows = [line(temperature=t, num_nodes=n) for t, n in ((0.8, 4), (0.0, 8))]
    sweep = read_sweep(file_of(tmp_path, *rows))
    # The temperature chose the tree, so the number of nodes is no setting of its own.
    assert (sweep.by, [(p.value, p.series) for p in sweep.points]) == ("temperature", [(0.0, ""), (0.8, "")])
    assert read_sweep(tmp_path / "r.jsonl", "num_nodes").by == "num_nodes"
    alone = read_sweep(file_of(tmp_path, line()))
    assert (alone.by, [p.value for p in alone.points]) == ("num_nodes", [4.0])
    assert sweep_plot(alone).startswith(PNG)


def test_of_two_lines_with_the_same_settings_the_last_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    swept = {"temperature": "0.8"}
    sweep = read_sweep(file_of(tmp_path, line(swept, 1.0), line(swept, 2.0)))
    assert [p.own["tokens_per_s"] for p in sweep.points] == [2.0]
    assert "1 lines repeat the settings of others" in caplog.text


def test_the_table_gives_every_result_a_line(tmp_path: Path) -> None:
    bare = {"contenders": {"ar": {"tokens_per_s": 3.0}}, "temperature": 0.5, "drafter": "heads"}
    sweep = read_sweep(file_of(tmp_path, line(speed=1234.5), bare), "temperature")
    assert sweep_table(sweep).splitlines()[2].split() == ["0", "1,234.5", "1.50x", "-", "1.80", "6.50", "512"]
    assert sweep_table(sweep).splitlines()[3].split() == ["0.5", "3.0", "-", "-", "-", "-", "-"]
    assert sweep_plot(sweep).startswith(PNG)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("", "it is empty"),
        ("{broken", "cannot be read"),
        ('{"tau": 2}\n', "line 1 is not a result of infer/bench.py"),
        ('{"contenders": {"ar": 3.5}}\n', "line 1 is not a result of infer/bench.py"),
        ("[1, 2]\n", "line 1 is not a result of infer/bench.py"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "r.jsonl").write_text(content)
    with pytest.raises(UserError, match=message):
        read_sweep(tmp_path / "r.jsonl")


def test_a_setting_that_no_line_knows_is_refused_with_those_they_know(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"by=tree.depth: 1 of 1 lines .* They know: seed, drafter, temperature"):
        read_sweep(file_of(tmp_path, line({"seed": "3"})), "tree.depth")


def test_a_sweep_of_bench_leaves_one_file_whose_plot_is_one_command(
    tmp_path: Path, tiny_llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "hydra"))
    (tmp_path / "p.txt").write_text("the quick\n")
    arguments = ["checkpoint=null", "drafter=lookup", f"base.path={tiny_llama_folder}", "base.device=cpu", "threads=1",
                 "prompts=p.txt", "max_new_tokens=4", "repeats=1", "contenders=[euryale,ar]"]  # fmt: skip
    result = run_script("infer/bench.py", "-m", *arguments, "tree=dynamic", "tree.num_nodes=2,4,999", "output=r.jsonl")
    assert result.status == 2, "one of the jobs cannot be"
    assert "failed: tree.num_nodes=999: tree.num_nodes must be from 1 to 256; got 999." in result.err
    assert "plot it: python infer/plot_sweep.py results=r.jsonl" in result.out
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["p.txt", "r.jsonl"], "no other file is left"
    rows = [json.loads(text) for text in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert [row["swept"] for row in rows] == [{"tree.num_nodes": "2"}, {"tree.num_nodes": "4"}]
    plot = run_script("infer/plot_sweep.py", "results=r.jsonl")
    assert plot.status == 0, plot.err
    assert plot.last_line == {"plot": "r.png", "by": "tree.num_nodes", "num_results": 2}
    assert (tmp_path / "r.png").read_bytes().startswith(PNG)
    assert run_script("infer/plot_sweep.py").status == 2
