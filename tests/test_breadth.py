"""Breadth prompts: divided between calibrating and measuring, and a report that says where nothing is gained."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from plain_heads import plain_heads
from random_models import random_heads

from euryale.base.base import Base
from euryale.data.config import DataConfig
from euryale.data.row_prompts import Opening
from euryale.data.sources import is_gone
from euryale.data.suites import BREADTH
from euryale.decoding.engine import Engine
from euryale.errors import UserError
from euryale.evaluation import breadth
from euryale.evaluation.config import MEASURED_A_KIND, CalibrateConfig
from euryale.evaluation.prompts import check_prompts, load_openings, load_prompts
from euryale.report.format import breadth_warning
from euryale.report.model_card import model_card
from euryale.report.tables import breadth_table, training_summary

TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}"


@pytest.fixture
def chat_base(tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> Iterator[Base]:
    monkeypatch.setattr(tiny_base.tokenizer, "chat_template", TEMPLATE)
    yield tiny_base


@pytest.fixture
def long_base(chat_base: Base, monkeypatch: pytest.MonkeyPatch) -> Base:
    """With room for every breadth prompt; it is only asked for prompts."""
    monkeypatch.setattr(chat_base, "max_length", 8192)
    return chat_base


def test_no_prompt_is_both_calibrated_on_and_measured(long_base: Base) -> None:
    openings = breadth.calibration_openings(long_base, 100)
    measured = breadth.measured_prompts(long_base)
    assert len(openings) == len(measured) == len(BREADTH) * MEASURED_A_KIND
    assert not {tuple(opening.ids) for opening in openings} & set(map(tuple, measured))


def test_a_few_prompts_are_of_all_kinds_and_go_through_the_chat_template(long_base: Base) -> None:
    kinds = {question.turns[0]: question.task for question in breadth.read_suite("breadth", None)}
    for ids in (breadth.measured_prompts(long_base)[:8], [o.ids for o in breadth.calibration_openings(long_base, 8)]):
        texts = [long_base.tokenizer.decode(prompt) for prompt in ids]
        assert all(text.startswith("[user]") for text in texts)
        questions = [question for question in kinds for text in texts if question[:40] in text]
        assert {kinds[question] for question in questions} == set(BREADTH)


def test_calibration_mixes_held_out_rows_and_breadth_prompts(long_base: Base) -> None:
    rows = [Opening([7, number], f"row {number}", "rows") for number in range(20)]
    mixed = breadth.mixed_openings(long_base, rows, 12, 0.5)
    assert mixed[:6] == rows[:6] and len(mixed) == 12
    assert {opening.origin for opening in mixed[6:]} == {"breadth"}
    assert breadth.mixed_openings(long_base, rows, 12, 0.0) == rows[:12]
    with pytest.raises(UserError, match="breadth_share must be from 0 to 1; got 1.5"):
        CalibrateConfig(breadth_share=1.5).check()


def test_a_base_without_a_chat_template_is_calibrated_on_its_rows_alone(tiny_base: Base) -> None:
    rows = [Opening([7, number], f"row {number}", "rows") for number in range(20)]
    assert not breadth.can_answer(tiny_base)
    assert breadth.mixed_openings(tiny_base, rows, 12, 0.5) == rows[:12]


def test_a_base_that_cannot_answer_is_left_alone_and_said_so_where_its_template_refuses(
    chat_base: Base, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert breadth.can_answer(chat_base)
    monkeypatch.setattr(chat_base, "max_length", 64)
    assert not breadth.can_answer(chat_base) and not caplog.records
    monkeypatch.setattr(chat_base.tokenizer, "chat_template", "{{ raise_exception('only on Mondays') }}")
    assert breadth.calibration_openings(chat_base, 4) == []
    assert "the breadth prompts are left out" in caplog.text and "only on Mondays" in caplog.text


def test_a_report_has_tau_and_speed_by_kind_and_names_what_gains_nothing(
    chat_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breadth, "NEW_TOKENS", 6)
    engine = Engine(chat_base, random_heads(plain_heads(num_heads=2, width=1.0), chat_base))
    found = breadth.measure_breadth(engine, 1, seed=3)
    assert set(found["kinds"]) <= set(BREADTH) and "chat" in found["kinds"]
    assert all(row["num_questions"] == 1 and row["tau"] >= 1 for row in found["kinds"].values())
    assert found["overall"]["num_questions"] == len(found["kinds"])
    speeds = [row["tau"] / row["speedup_vs_ar"] for row in (*found["kinds"].values(), found["overall"])]
    assert speeds == pytest.approx([found["step_cost"]] * len(speeds))  # a kind's few answers time too little
    slow = [kind for kind, row in found["kinds"].items() if row["speedup_vs_ar"] <= 1]
    assert found["without_gain"] == slow

    told = found | {"without_gain": ["code", "maths"]}
    for text in (breadth_table(told), training_summary({"breadth": told}), model_card({"breadth": told})):
        assert "code, maths" in text and "data=self" in text and "data=mix" in text and "chat" in text
    assert breadth_warning(found | {"without_gain": []}) is None
    assert breadth_table({}) == "" and "eight kinds" not in model_card({})


def gone(folder: Path) -> dict:
    return {"provenance": {"settings": {"data.kind": "regenerated", "data.folder": str(folder / "gone")}}}


def test_heads_from_another_machine_are_measured_on_breadth_prompts(
    long_base: Base, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    described = gone(tmp_path)
    check_prompts(None, None, described)
    with caplog.at_level(logging.INFO):
        prompts = load_prompts(long_base, None, 5, 20, described, DataConfig(kind="checkpoint"))
    assert prompts == breadth.measured_prompts(long_base)[:5]
    [line] = [record.message for record in caplog.records]
    assert "is not on this machine" in line and "breadth.jsonl" in line
    openings = load_openings(long_base, None, CalibrateConfig(num_prompts=9), described, None)
    assert openings == breadth.calibration_openings(long_base, 9)


def test_rows_that_were_asked_for_and_are_gone_are_refused(long_base: Base, tmp_path: Path) -> None:
    asked = DataConfig(kind="files", files=str(tmp_path / "none.jsonl"))
    with pytest.raises(UserError, match="none.jsonl"):
        check_prompts(None, asked, gone(tmp_path))


def test_data_is_gone_when_a_file_or_folder_of_it_is(tmp_path: Path) -> None:
    there = tmp_path / "a[1].jsonl"
    there.write_text("{}")
    files = DataConfig(kind="files", files=[str(there), str(tmp_path / "*.jsonl")])
    assert not is_gone(files)
    assert is_gone(replace(files, files=[str(there), str(tmp_path / "b.jsonl")]))
    part = {"kind": "regenerated", "folder": str(tmp_path / "none"), "weight": 1}
    assert is_gone(DataConfig(kind="mix", mix=[{"kind": "stdlib", "weight": 1}, part]))
    assert not is_gone(DataConfig(kind="hub", repo="a/b")) and not is_gone(DataConfig())
