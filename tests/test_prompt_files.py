"""Prompt files are read as they are, and mistakes in them are named."""

import gzip
import json
from pathlib import Path

import pytest

from euryale.data.prompt_files import Prompt, read_prompts
from euryale.data.rows import Message
from euryale.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


def asked(text: str) -> tuple[Message, ...]:
    return (Message("user", text),)


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"prompt": "p", "task_id": "T/1"}, Prompt("p", None, "T/1")),
        ({"text": "t", "meta": {}}, Prompt("t", None, "1")),
        ({"turns": ["a", "b"], "question_id": 81, "category": "writing"}, Prompt(None, asked("a"), "81", "writing")),
        ({"question": "q", "answer": "a"}, Prompt(None, asked("q"), "1")),
        ({"instruction": "i", "input": "x", "output": "o", "id": 0}, Prompt(None, asked("i\n\nx"), "0")),
        ({"instruction": "i", "instances": [{"input": "x", "output": "o"}]}, Prompt(None, asked("i\n\nx"), "1")),
        ({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"},
                       {"role": "assistant", "content": "a"}, {"role": "user", "content": "r"}]},
         Prompt(None, (Message("system", "s"), *asked("q")), "1")),
        ({"conversations": [{"from": "gpt", "value": "hi"}, {"from": "human", "value": "q"}]},
         Prompt(None, asked("q"), "1")),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json"])
def test_a_record_is_read_by_the_key_it_has(
    tmp_path: Path, name: str, record: dict[str, object], expected: Prompt
) -> None:
    text = json.dumps([record]) if name == "a.json" else json.dumps(record) + "\n"
    data = gzip.compress(text.encode()) if name.endswith(".gz") else text.encode()
    (tmp_path / name).write_bytes(data)
    assert read_prompts(tmp_path / name) == [expected]


def test_a_text_file_holds_one_prompt_a_line_and_spaces_count(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("def f(x):\n\n  indented <|endoftext|>\n = A = \nlast")
    assert [prompt.text for prompt in read_prompts(tmp_path / "a.txt")] == [
        "def f(x):", "  indented <|endoftext|>", " = A = ", "last",
    ]  # fmt: skip
    assert [prompt.key for prompt in read_prompts(tmp_path / "a.txt", limit=2)] == ["1", "2"]


def test_a_list_may_hold_plain_strings(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('["one", "two"]')
    assert [prompt.text for prompt in read_prompts(tmp_path / "a.json")] == ["one", "two"]


def test_a_limit_leaves_the_rest_of_the_file_unread(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\nnot JSON\n')
    assert [prompt.text for prompt in read_prompts(tmp_path / "a.jsonl", limit=2)] == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.jsonl", '{"prompt": "a"}\n{"prompt": \n', "a.jsonl:2: not valid JSON"),
        ("a.jsonl", '{"prompt": "a"}\n{"title": "b", "n": 1}\n', "a.jsonl:2 holds no prompt. Its keys: title, n"),
        ("a.jsonl", '{"messages": [{"role": "assistant", "content": "b"}]}\n', "messages must have a question"),
        ("a.jsonl", '{"messages": []}\n', "a.jsonl:1: messages must be a list of turns"),
        ("a.jsonl", '{"prompt": "\\ud800"}\n', "a.jsonl:1: the text must be valid Unicode"),
        ("a.json", '["a", 3]', "item 2: a prompt must be an object with one of prompt, text"),
        ("a.txt", "\n \n", "holds no prompt"),
        ("a.jsonl", "", "holds no prompt"),
        ("a.csv", "x", "cannot read files ending in '.csv'. Known: .txt, .json, .jsonl"),
        ("a.jsonl.gz", "not compressed", "cannot be read"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, content: str, complaint: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as caught:
        read_prompts(tmp_path / name)
    assert complaint in str(caught.value)
    assert "data." not in str(caught.value), "its settings are those of rows to train on"


def test_a_missing_file_and_a_limit_of_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such file"):
        read_prompts(tmp_path / "a.txt")
    with pytest.raises(UserError, match="must be at least 1"):
        read_prompts(ROOT / "data" / "prompts.txt", limit=0)


def test_the_bundled_prompts_are_twenty_openings() -> None:
    prompts = read_prompts(ROOT / "data" / "prompts.txt")
    assert len({prompt.text for prompt in prompts}) == 20


@pytest.mark.parametrize(
    ("name", "count", "first", "key", "category"),
    [
        ("spec_bench_question.jsonl", 480, "Compose an engaging travel blog", "81", "writing"),
        ("mt_bench_question.jsonl", 80, "Compose an engaging travel blog", "81", "writing"),
        ("HumanEval.jsonl.gz", 164, "from typing import List", "HumanEval/0", ""),
        ("gsm8k_test.jsonl", 1319, "Janet\u2019s ducks lay 16 eggs per day.", "1", ""),
        ("self_instruct_seed_tasks.jsonl", 175, "Is there anything I can eat", "seed_task_0", ""),
        ("gpteacher_codegen_instruct.json", 4535, "Write a C++ program that calculates", "1", ""),
        ("sharegpt_dummy_conversation.json", 500, "Who are you?", "identity_0", ""),
    ],
)  # fmt: skip
def test_published_prompt_files_are_read_as_they_are(
    material: Path, name: str, count: int, first: str, key: str, category: str
) -> None:
    prompts = read_prompts(material / "prompts" / name)
    assert len(prompts) == count
    text = prompts[0].text if prompts[0].messages is None else prompts[0].messages[-1].content
    assert text is not None and text.startswith(first)
    assert (prompts[0].key, prompts[0].category) == (key, category)
    assert all((prompt.text or prompt.messages) for prompt in prompts)
