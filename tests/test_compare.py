"""Comparisons: every question asked of every contender in turns, and where their texts part."""

from pathlib import Path

import pytest
from plain_heads import plain_heads
from random_models import random_heads
from scripts import assert_refused, run_script

from euryale.base.base import Base
from euryale.decoding.engine import Engine
from euryale.decoding.sampling import Sampling
from euryale.errors import UserError
from euryale.evaluation import compare as compare_module
from euryale.evaluation.compare import Asked, compare, read_questions
from euryale.evaluation.config import BenchSettings
from euryale.evaluation.contenders import Contender, Turn
from euryale.report.compare_tables import comparison_table, question_block

TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}"
NAMES = ("hf_generate", "ar", "euryale")


@pytest.fixture(scope="module")
def engine(tiny_base: Base) -> Engine:
    return Engine(tiny_base, random_heads(plain_heads(num_heads=2, width=1.0), tiny_base))


def test_every_contender_answers_every_question_with_the_same_text(engine: Engine) -> None:
    shown: list[dict] = []
    questions = read_questions(engine, ["Why?", "And how?"], None, 20, 8)
    result = compare(engine, questions, BenchSettings(NAMES, repeats=2, max_new_tokens=8), shown.append)
    assert result["questions"] == shown and [entry["question"] for entry in shown] == ["Why?", "And how?"]
    for entry in shown:
        assert list(entry["contenders"]) == list(NAMES)
        for row in entry["contenders"].values():
            assert row["differs_at"] is None and row["seconds"] > 0 and {"over_ar", "over_hf"} <= set(row)
        assert entry["contenders"]["euryale"]["tau"] >= 1 == entry["contenders"]["ar"]["tau"]
        assert "the same" in question_block(entry) and entry["question"] in question_block(entry)
    assert result["num_prompts"] == 2 and result["identical"] == 2
    assert comparison_table(result).count("2/2") == 3


def stand_ins(monkeypatch: pytest.MonkeyPatch, ids: dict[str, list[int]]) -> list[str]:
    """Contenders that give these ids in a second; the list of who was asked, warm-up included."""
    asked: list[str] = []

    def builder(name: str, of: list[int]) -> object:
        def answer(prompt: list[int], seed: int) -> Turn:
            asked.append(name)
            return Turn(of, 1.0)

        def build(*_: object) -> Contender:
            return answer

        return build

    monkeypatch.setattr(compare_module, "CONTENDERS", {name: builder(name, of) for name, of in ids.items()})
    return asked


def test_another_contender_begins_at_each_question_and_round(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = stand_ins(monkeypatch, dict.fromkeys(NAMES, [5, 6]))
    compare(engine, [Asked("a", [5]), Asked("b", [6])], BenchSettings(NAMES, repeats=2, max_new_tokens=2))
    firsts = asked[3::3]
    assert firsts == ["hf_generate", "ar", "ar", "euryale"] and len(asked) == 3 + 12


def test_where_a_text_first_differs_is_said(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = {"hf_generate": [40, 41, 50], "ar": [40, 41, 42, 43], "euryale": [40, 41, 42]}
    stand_ins(monkeypatch, ids)
    result = compare(engine, [Asked("a", [5])], BenchSettings(NAMES, repeats=1, max_new_tokens=4))
    rows = result["questions"][0]["contenders"]
    assert {name: row["differs_at"] for name, row in rows.items()} == {"hf_generate": 2, "ar": None, "euryale": 3}
    block = question_block(result["questions"][0])
    assert "differs after 2 tokens" in block and "differs after 3 tokens" in block
    table = comparison_table(result)
    assert table.count("0/1") == 2 and "transformers may take the other one" not in table
    assert "transformers may take the other one" in comparison_table(result | {"dtype": "bfloat16"})


def test_sampled_text_of_transformers_is_another_draw(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_ins(monkeypatch, dict.fromkeys(NAMES, [40]))
    result = compare(
        engine, [Asked("a", [5])], BenchSettings(NAMES, repeats=1, max_new_tokens=1, sampling=Sampling(0.8))
    )
    assert "not compared" in question_block(result["questions"][0])


def test_questions_go_through_the_chat_template_and_are_bundled_for_either_kind_of_base(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    openings = read_questions(engine, [], None, 20, 8)
    assert len(openings) == 3
    assert all(question.text in engine.base.tokenizer.decode(question.ids) for question in openings)
    monkeypatch.setattr(engine.base.tokenizer, "chat_template", TEMPLATE)
    monkeypatch.setattr(engine.base, "max_length", 4096)
    [question] = read_questions(engine, ["Why?"], None, 20, 8)
    assert engine.base.tokenizer.decode(question.ids) == "[user]Why?\n"
    assert len(read_questions(engine, [], None, 20, 8)) == 3


def test_what_cannot_be_asked_is_refused(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="both"):
        read_questions(engine, ["a"], "b.txt", 20, 8)
    with pytest.raises(UserError, match="question 2 must hold text; got ' '"):
        read_questions(engine, ["a", " "], None, 20, 8)
    with pytest.raises(UserError, match="1 to 248 tokens.*got 300: 'xxx"):
        read_questions(engine, ["x" * 300], None, 20, 8)
    with pytest.raises(UserError, match="no questions"):
        compare(engine, [], BenchSettings())


def test_the_script_ends_with_a_table_and_json_and_writes_the_same(tiny_llama_folder: Path, tmp_path: Path) -> None:
    base = ["checkpoint=null", f"base.path={tiny_llama_folder}", "drafter=lookup", "threads=1", "max_new_tokens=6"]
    output = tmp_path / "result.json"
    result = run_script("infer/compare.py", *base, 'questions=["Why, and how?"]', f"output={output}")
    assert result.status == 0, result.err
    assert "> Why, and how?" in result.out and "all 1 questions" in result.out
    assert result.last_line["questions"][0]["question"] == "Why, and how?" and output.is_file()
    assert result.last_line["metric"] == result.last_line["contenders"]["euryale"]["tokens_per_s"]
    assert_refused(run_script("infer/compare.py", *base, "contenders=[someone]"), "someone", "hf_generate")
