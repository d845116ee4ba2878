"""Published suites are known by their files, asked turn by turn, and added up as their authors do."""

import gzip
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from scripts import run_script

from euryale.base.base import Base
from euryale.data.context_suite import context_questions
from euryale.data.suites import BREADTH, SUITES, Question, last_number, read_suite
from euryale.decoding.engine import Engine
from euryale.decoding.sampling import Sampling
from euryale.errors import UserError
from euryale.evaluation import bench as bench_module
from euryale.evaluation.bench_suite import ask, bench_suite
from euryale.evaluation.config import BenchSettings
from euryale.evaluation.contenders import Turn
from euryale.report.bench_tables import suite_table

PUBLISHED = [name for name, suite in SUITES.items() if suite.bundled is None]
CATEGORIES = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
OTHERS = ("translation", "summarization", "qa", "math_reasoning", "rag")


def rows_of(name: str, num_each: int = 2) -> list[dict[str, object]]:
    """A file as the suite publishes it, much shorter."""
    if name == "humaneval":
        known = {"entry_point": "f", "canonical_solution": "    return 1\n", "test": "def check(f): ..."}
        return [{"task_id": f"HumanEval/{i}", "prompt": f"def f{i}():\n", **known} for i in range(num_each)]
    if name == "gsm8k":
        return [{"question": f"What is {i} and 1?", "answer": f"#### {i + 1}"} for i in range(num_each)]
    rows: list[dict[str, object]] = []
    for category in [*CATEGORIES, *(OTHERS if name == "spec_bench" else ())]:
        turns = ["first of {}", "second of {}"] if category in CATEGORIES else ["only one of {}"]
        asked = [[turn.format(f"{category} {i}") for turn in turns] for i in range(num_each)]
        rows += [{"question_id": len(rows) + i, "category": category, "turns": t} for i, t in enumerate(asked)]
    return rows


def file_of(folder: Path, rows: list[dict[str, object]], name: str = "question.jsonl") -> str:
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return str(folder / name)


@pytest.mark.parametrize(
    ("name", "tasks", "first"),
    [
        ("spec_bench", ["mt_bench", *OTHERS], ("0", None, ("first of writing 0", "second of writing 0"))),
        ("mt_bench", [*CATEGORIES], ("0", None, ("first of writing 0", "second of writing 0"))),
        ("humaneval", ["humaneval"], ("HumanEval/0", "def f0():\n", ())),
        ("gsm8k", ["gsm8k"], ("1", None, ("What is 0 and 1?",))),
    ],
)
def test_a_suite_is_read_task_by_task(
    tmp_path: Path, name: str, tasks: list[str], first: tuple[str, str | None, tuple[str, ...]]
) -> None:
    questions = read_suite(name, file_of(tmp_path, rows_of(name), "q.jsonl.gz"))
    assert list(dict.fromkeys(q.task for q in questions)) == tasks
    assert questions[0][1:4] == first
    assert len(questions) == len(rows_of(name))
    backwards = read_suite(name, file_of(tmp_path, rows_of(name)[::-1]))
    assert list(dict.fromkeys(q.task for q in backwards)) == tasks, "the order of the file does not matter"


@pytest.mark.parametrize("suite", PUBLISHED)
@pytest.mark.parametrize("file", PUBLISHED)
def test_the_file_of_another_suite_is_refused(tmp_path: Path, suite: str, file: str) -> None:
    path = file_of(tmp_path, rows_of(file))
    if suite == file:
        assert read_suite(suite, path)
        return
    with pytest.raises(UserError, match=f"suite={suite}: prompts=.* is not its file: .*github.com"):
        read_suite(suite, path)


def test_what_is_missing_or_foreign_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="suite must be one of breadth, spec_bench, mt_bench, humaneval.*; got alpaca"):
        read_suite("alpaca", None)
    with pytest.raises(UserError, match="suite=gsm8k needs prompts=FILE, and nothing is downloaded: it is .*github"):
        read_suite("gsm8k", None)
    rows = rows_of("spec_bench")
    with pytest.raises(UserError, match="it has no question of qa, rag"):
        read_suite("spec_bench", file_of(tmp_path, [r for r in rows if r["category"] not in ("qa", "rag")]))
    with pytest.raises(UserError, match=r"question.jsonl:2 is of the category 'poetry'"):
        read_suite("mt_bench", file_of(tmp_path, [rows[0], {**rows[1], "category": "poetry"}]))
    with pytest.raises(UserError, match="question.jsonl:1 has no answer, only question"):
        read_suite("gsm8k", file_of(tmp_path, [{"question": "q"}]))
    with pytest.raises(UserError, match="question.jsonl:1 has an answer without a number: 'many'"):
        read_suite("gsm8k", file_of(tmp_path, [{"question": "q", "answer": "many"}]))
    with pytest.raises(UserError, match="question.jsonl:1.*turns"):
        read_suite("mt_bench", file_of(tmp_path, [{**rows[0], "turns": ["a", 3]}]))
    with pytest.raises(UserError, match="there is no such file"):
        read_suite("gsm8k", str(tmp_path / "nowhere.jsonl"))
    with pytest.raises(UserError, match="is not a record"):
        (tmp_path / "list.json").write_text('["a question"]')
        read_suite("gsm8k", str(tmp_path / "list.json"))


def test_the_context_suite_asks_the_same_after_ever_longer_texts(tmp_path: Path) -> None:
    questions = read_suite("context", None)
    tasks = list(dict.fromkeys(q.task for q in questions))
    assert tasks == [f"{kind} {size}k" for kind in ("prose", "code") for size in (1, 4, 12, 24)]
    for kind in ("prose", "code"):
        for number in range(8):
            texts = [q.turns[0] for q in questions if q.key == f"{kind} {number}"]
            assert len(texts) == 4
            assert all(longer.endswith(shorter) for shorter, longer in itertools.pairwise(texts))
            assert [len(text) // 1000 for text in texts] == [1, 4, 12, 24]
    assert len({q.turns[0] for q in questions}) == len(questions) == 64
    with pytest.raises(UserError, match="suite=context is bundled and takes no prompts=; got some.jsonl"):
        read_suite("context", "some.jsonl")
    assert context_questions(tmp_path) == []


def test_the_second_turn_is_asked_behind_the_answer_to_the_first(tiny_base: Base) -> None:
    engine = Engine(tiny_base, drafter="lookup")
    questions = [Question("t", str(i), None, (f"one {i}", f"two {i}")) for i in range(2)]
    settings = BenchSettings(max_new_tokens=6, sampling=Sampling(0.9), seed=5)
    asked = ask(engine, questions, 9, settings)
    assert asked.places == [[0, 1], [2, 3]]
    for question, (first, second) in zip(questions, asked.places, strict=True):
        assert asked.prompts[first] == engine.encode(question.turns[0])
        # The very answer that the contenders give: prompt i is answered with seed + i.
        [said] = engine.generate([asked.prompts[first]], 6, temperature=0.9, seed=5 + first)
        told = f"user: {question.turns[0]}\nassistant: {said.text}\nuser: {question.turns[1]}\nassistant:"
        assert asked.prompts[second] == engine.encode(told)


def test_each_task_gives_its_first_questions_that_fit(tiny_base: Base, caplog: pytest.LogCaptureFixture) -> None:
    long, endless = "x" * 250, "x" * 300  # the context holds 256 tokens
    questions = [
        Question("a", "0", long, ()),
        Question("a", "1", "one", ()),
        Question("a", "2", None, ("short", endless)),
        Question("a", "3", "two", ()),
        Question("a", "4", "three", ()),
        Question("b", "5", endless, ()),
    ]
    asked = ask(Engine(tiny_base, drafter="none"), questions, 2, BenchSettings(max_new_tokens=16))
    assert [question.key for question in asked.questions] == ["1", "3"]
    assert asked.left_out == {"a": 2, "b": 1}
    assert "context of 256 tokens: 2 of a, 1 of b (all of it)" in caplog.text
    with pytest.raises(UserError, match="no question leaves room for max_new_tokens=16 in the context of 256"):
        ask(Engine(tiny_base, drafter="none"), questions[:1], 2, BenchSettings(max_new_tokens=16))
    with pytest.raises(UserError, match="limit must be at least 1; got 0"):
        ask(Engine(tiny_base, drafter="none"), questions, 0, BenchSettings())


def test_tasks_are_added_up_each_alone_and_together(tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    def stub(turns: list[tuple[int, float, list[int] | None]]) -> Callable[..., Callable[..., Turn]]:
        left = iter([(1, 1.0, [1]), *turns])  # the warm-up first

        def answer(prompt: list[int], seed: int) -> Turn:
            tokens, seconds, accepted = next(left)
            return Turn([7] * tokens, seconds, accepted, part_seconds={"prefill": 0.0, **dict.fromkeys(PARTS, 0.0)})

        return lambda *_: answer

    PARTS = ("draft", "verify", "accept", "commit")
    ours = [(4, 1.0, [3, 1]), (8, 1.0, [4, 4]), (6, 1.0, [1] * 6)]
    plain = [(4, 2.0, [1] * 4), (8, 2.0, [1] * 8), (6, 1.5, [1] * 6)]
    monkeypatch.setattr(bench_module, "CONTENDERS", {"euryale": stub(ours), "ar": stub(plain)})
    questions = [Question("a", "0", None, ("one", "two")), Question("b", "1", "three", ())]
    found = bench_suite(
        Engine(tiny_base, drafter="lookup"), questions, 9, BenchSettings(("euryale", "ar"), 1, max_new_tokens=4)
    )
    a, b, overall = found["tasks"]["a"], found["tasks"]["b"], found["overall"]
    assert (a["num_questions"], a["num_prompts"], b["num_questions"], overall["num_questions"]) == (1, 2, 1, 2)
    assert a["contenders"]["euryale"]["tau"] == 12 / 4 and b["contenders"]["euryale"]["tau"] == 1.0
    assert overall["contenders"]["euryale"]["tau"] == 18 / 10, "all tokens over all steps"
    assert (a["speedup_vs_ar"], b["speedup_vs_ar"]) == (2.0, 1.5)
    assert overall["speedup_vs_ar"] == pytest.approx((18 / 3) / (18 / 5.5))
    # Spec-Bench: questions at 12 / 2 = 6 and 6 a second against 12 / 4 = 3 and 6 / 1.5 = 4.
    assert overall["speedup_spec_bench"] == pytest.approx(((6 + 6) / 2) / ((3 + 4) / 2))
    assert overall["tau_by_depth"][:3] == [0.3, 0.3, 0.2]  # steps of 3, 1, 4, 4 and six of 1: drafted 2, 0, 3, 3
    assert (overall["identical"], overall["total"]) == (3, 3)


@pytest.mark.parametrize("asked", ["suite=gsm8k contenders=[ar]", "contenders=[euryale,ar]"])
def test_contenders_are_those_of_a_suite_with_euryale_among_them(asked: str) -> None:
    result = run_script("infer/eval.py", "checkpoint=null", "base=tiny", "drafter=lookup", *asked.split())
    assert result.status == 2
    assert "contenders must be null without suite=NAME, and with it euryale among others; got [" in result.err


def test_eval_runs_a_suite_and_writes_it_down(tmp_path: Path, tiny_llama_folder: Path) -> None:
    rows = rows_of("spec_bench")
    rows[-2]["turns"] = rows[-1]["turns"] = ["x" * 300]  # none of rag fits
    file, output = file_of(tmp_path, rows), tmp_path / "results.jsonl"
    arguments = ["checkpoint=null", "drafter=lookup", f"base.path={tiny_llama_folder}", "base.device=cpu",
                 "max_new_tokens=8", "limit=1", "repeats=1", "threads=1", f"prompts={file}"]  # fmt: skip
    result = run_script("infer/eval.py", *arguments, "suite=spec_bench", f"output={output}")
    assert result.status == 0, result.err
    alone = run_script("infer/eval.py", *arguments, "suite=spec_bench", "contenders=[euryale]")
    assert list(alone.last_line["overall"]["contenders"]) == ["euryale"]
    found = result.last_line
    assert list(found["tasks"]) == ["mt_bench", "translation", "summarization", "qa", "math_reasoning"]
    assert found["left_out"] == {"rag": 2}
    assert found["metric"] == found["overall"]["contenders"]["euryale"]["tau"] >= 1.0
    assert found["overall"]["identical"] == found["overall"]["identical_hf"] == found["overall"]["total"] == 6
    written = json.loads(output.read_text())
    assert written == {key: value for key, value in found.items() if key != "metric"}
    assert {"hardware", "provenance", "suite", "num_nodes", "temperature"} <= set(written)
    table = suite_table(found)
    assert table in result.out and "0 (2 too long)" in table
    refused = run_script("infer/eval.py", *arguments, "suite=humaneval")
    assert refused.status == 2 and "has no task_id, prompt" in refused.err


def test_the_published_files_are_their_suites(material: Path) -> None:
    folder = material / "prompts"
    files = {
        "spec_bench": ("spec_bench_question.jsonl", 480, 6),
        "mt_bench": ("mt_bench_question.jsonl", 80, 8),
        "humaneval": ("HumanEval.jsonl.gz", 164, 1),
        "gsm8k": ("gsm8k_test.jsonl", 1319, 1),
    }
    for suite, (name, count, num_tasks) in files.items():
        questions = read_suite(suite, str(folder / name))
        assert (len(questions), len({q.task for q in questions})) == (count, num_tasks), suite
        assert sum(len(q.turns) for q in questions) == {"spec_bench": 560, "mt_bench": 160, "gsm8k": 1319}.get(suite, 0)


def test_the_bundled_suite_has_eight_questions_of_each_kind_and_needs_no_file() -> None:
    questions = read_suite("breadth", None)
    assert list(dict.fromkeys(question.task for question in questions)) == list(BREADTH)
    assert all(sum(question.task == kind for question in questions) == 8 for kind in BREADTH)
    assert len({question.turns for question in questions}) == 64


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("She sells 9 eggs for $18.", "18"),
        ("It costs $1,000.00 in all", "1000"),
        ("From -3.50 to -2.250", "-2.25"),
        ("#### 70,000", "70000"),
        ("1. first\n2. second: 0.5%", "0.5"),
        ("1e3 is read as its parts", "3"),
        ("between 10-18, or x-20", "20"),
        ("it is $-5,", "-5"),
        ("none at all", None),
    ],
)
def test_the_last_number_of_a_text_is_its_answer(text: str, number: str | None) -> None:
    assert last_number(text) == number


def test_right_answers_are_counted_for_every_contender(tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(tiny_base, drafter="lookup")

    def says(*texts: str) -> Callable[..., Callable[..., Turn]]:
        left = iter(["", *texts])  # the warm-up first
        return lambda *_: lambda prompt, seed: Turn(engine.encode(next(left)), 1.0)

    monkeypatch.setattr(
        bench_module,
        "CONTENDERS",
        {"hf_generate": says("so 6 + 1 = 7", "8", "no idea"), "ar": says("12", "it is 8.0", "9 of 10")},
    )
    questions = [Question("sums", str(n), "how many", (), right=str(n)) for n in (7, 8, 9)]
    settings = BenchSettings(("hf_generate", "ar"), 1, max_new_tokens=4)
    result = bench_suite(engine, questions, 9, settings)
    assert result["overall"]["right"] == result["tasks"]["sums"]["right"] == {"hf_generate": 2, "ar": 1}
    assert "right answers of 3, by their last number: HF generate 2, AR" in suite_table(result)
    untold = {**result, "overall": {name: value for name, value in result["overall"].items() if name != "right"}}
    assert "right answers" not in suite_table(untold)


def test_where_one_answer_is_not_told_none_is_counted(tiny_base: Base) -> None:
    questions = [Question("sums", "0", "how", (), right="1"), Question("sums", "1", "many", ())]
    result = bench_suite(Engine(tiny_base, drafter="none"), questions, 9, BenchSettings(("ar",), 1, max_new_tokens=4))
    assert "right" not in result["overall"]
