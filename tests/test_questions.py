"""Questions that the base writes itself: what is asked, what is left out, and how a run with data=self ends."""

import json
import shutil
from pathlib import Path

import pytest
from scripts import SMALL, run_script

from euryale.base.base import Base, load_base
from euryale.base.config import BaseConfig
from euryale.data.rows import Message
from euryale.errors import UserError
from euryale.regenerate import questions
from euryale.regenerate.question_frame import KINDS, end_of_turn, is_usable, kind_of, question_frame
from euryale.regenerate.questions import QuestionSettings, has_followup, write_questions

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
FEW = QuestionSettings(count=24, max_tokens=26, followup_share=0.5)


@pytest.fixture(scope="module")
def chat_folder(tmp_path_factory: pytest.TempPathFactory, tiny_llama_folder: Path) -> Path:
    """The tiny base with a chat template whose turns end in the end token."""
    folder = tmp_path_factory.mktemp("chat") / "tiny-chat"
    shutil.copytree(tiny_llama_folder, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": TEMPLATE}))
    return folder


@pytest.fixture(scope="module")
def chat_base(chat_folder: Path) -> Base:
    return load_base(BaseConfig(path=str(chat_folder), dtype="float32", device="cpu"))


@pytest.fixture
def anything_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random base writes no words, so what it writes is taken as it is."""
    monkeypatch.setattr(questions, "is_usable", lambda text: len(text.strip()) >= 2)


def test_a_question_stands_between_the_text_of_the_template(chat_base: Base) -> None:
    history = [Message("user", "one?"), Message("assistant", "yes")]
    frame = question_frame(chat_base.tokenizer, history, "Be kind.")
    assert frame.before == "[system]Be kind.</s>[user]one?</s>[assistant]yes</s>[user]"
    assert end_of_turn(chat_base.tokenizer, frame) == "</s>"


def test_a_template_without_special_tokens_ends_a_turn_by_its_own_text(
    chat_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        chat_base.tokenizer,
        "chat_template",
        "{% for m in messages %}### {{ m.role }}\n{{ m.content }}\n\n### end\n{% endfor %}",
    )
    assert end_of_turn(chat_base.tokenizer, question_frame(chat_base.tokenizer)) == "### end"


@pytest.mark.parametrize(
    "template", [None, "{% for m in messages %}{{ m.content | upper }}{% endfor %}", "{{ messages[0].role }}"]
)
def test_a_base_that_cannot_be_asked_is_refused(
    chat_base: Base, monkeypatch: pytest.MonkeyPatch, template: str | None, tmp_path: Path
) -> None:
    monkeypatch.setattr(chat_base.tokenizer, "chat_template", template)
    with pytest.raises(UserError, match="data=self( needs|: the tokenizer's chat template must show every turn)"):
        write_questions(chat_base, FEW, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Why is the sky blue in the evening?", True),
        ("Hi there", False),
        ("Wait\x00 what is this for?", False),
        ("again and again and again and again and again and again and again", False),
        ("def f(x):\n\treturn x + 1\nWhat does it do?", True),
    ],
)
def test_what_can_be_asked(text: str, expected: bool) -> None:
    assert is_usable(text) is expected


def test_half_of_the_questions_are_free_and_the_other_kinds_take_turns() -> None:
    kinds = [kind_of(number) for number in range(28)]
    assert kinds.count("free") == 14
    assert {kinds.count(kind) for kind in KINDS if kind != "free"} == {2}


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.6, 0.75, 1.0])
def test_the_share_of_questions_with_a_second_one_is_the_share_that_was_asked_for(share: float) -> None:
    followed = [has_followup(number, share) for number in range(400)]
    assert sum(followed) == 400 * share
    assert sum(followed[::2]) == sum(followed[1::2]), "free questions and the other kinds alike"


def test_questions_depend_on_their_number_and_the_seed_alone(
    chat_base: Base, tmp_path: Path, anything_goes: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_questions(chat_base, FEW, tmp_path / "a")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) > 8
    roles = {tuple(message["role"] for message in row["messages"]) for row in rows}
    assert roles == {("user",), ("user", "assistant", "user")}
    monkeypatch.setattr(questions, "_PART", 7)  # other parts, other batches
    assert write_questions(chat_base, FEW, tmp_path / "b", num_rows=3).read_bytes() == file.read_bytes()


def test_an_interrupted_set_goes_on_after_its_last_part(
    chat_base: Base, tmp_path: Path, anything_goes: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(questions, "_PART", 8)
    whole = write_questions(chat_base, FEW, tmp_path / "whole").read_bytes()
    plain, asked = questions._ask, []

    def interrupted(engine: object, numbers: range, settings: QuestionSettings) -> list:
        asked.append(numbers.start)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return plain(engine, numbers, settings)  # type: ignore[arg-type]

    monkeypatch.setattr(questions, "_ask", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_questions(chat_base, FEW, tmp_path / "b")
    assert write_questions(chat_base, FEW, tmp_path / "b").read_bytes() == whole
    assert asked == [0, 8, 8, 16]
    assert [path.name for path in (tmp_path / "b").glob("*/*")] == ["questions.jsonl"]


def test_a_run_on_questions_of_its_own_base_trains_heads(
    chat_folder: Path, tmp_path: Path, anything_goes: None
) -> None:
    arguments = [a for a in SMALL if not a.startswith("data.held_out")]
    result = run_script(
        "train/run.py", *arguments, f"base.path={chat_folder}", "base.dtype=float32", "data=self", "data.questions=120",
        "data.question_tokens=32", "data.held_out_one_in=3", f"output={tmp_path}", f"regenerate.output={tmp_path}/text",
        "name=run",
    )  # fmt: skip
    assert result.status == 0, result.err
    assert result.last_line["checkpoint"] == str(tmp_path / "run")
    assert len(list((tmp_path / "text").glob("questions-*/questions.jsonl"))) == 1
    assert "chat" in json.loads((tmp_path / "run/report.json").read_text())["breadth"]["kinds"]
    assert "bundled prompts of other kinds" in result.out


def test_a_server_cannot_write_the_questions(chat_folder: Path, tmp_path: Path) -> None:
    result = run_script(
        "train/regenerate.py", f"base.path={chat_folder}", "data=self", "regenerate.url=http://127.0.0.1:9/v1",
        f"regenerate.output={tmp_path}",
    )  # fmt: skip
    assert result.status == 2
    assert "data=self is written by the base itself, not by a server" in result.err
