"""The terminal shows what the engine says: one answer, or a conversation that remembers and can start over."""

import io
import os
from unittest.mock import patch

import pytest
from plain_heads import plain_heads
from random_models import random_heads
from tiny_llama import character_tokenizer

import euryale.cli.chat
from euryale.base.base import Base
from euryale.cli.chat import HELP, chat, notice_of_plain_text, read_all, stream_answer
from euryale.cli.schemas import InferConfig
from euryale.data.rows import Message
from euryale.data.tokens import prompt_ids
from euryale.decoding.engine import Engine
from euryale.errors import UserError

TEMPLATE = (
    "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)
CONFIG = InferConfig(max_new_tokens=10)


@pytest.fixture(scope="module")
def engine(tiny_base: Base) -> Engine:
    return Engine(tiny_base, random_heads(plain_heads(num_heads=2), tiny_base))


@pytest.fixture
def talking(engine: Engine) -> Engine:
    """The same with a chat template."""
    base = engine.base
    tokenizer = character_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return Engine(Base(base.model, tokenizer, base.path, base.fingerprint), engine.heads)


def talk(engine: Engine, *lines: str, config: InferConfig = CONFIG) -> tuple[dict[str, object], str]:
    out = io.StringIO()
    return chat(engine, config, io.StringIO("".join(lines)), out), out.getvalue()


def answer_to(engine: Engine, *turns: tuple[str, str], max_new_tokens: int = 10) -> str:
    """What the engine says to a conversation, asked directly."""
    ids = prompt_ids(None, tuple(Message(*turn) for turn in turns), engine.base.tokenizer)
    return engine.generate([ids], max_new_tokens)[0].text


class Pieces(io.StringIO):
    """Notes what is there at each flush."""

    def __init__(self) -> None:
        super().__init__()
        self.flushed: list[str] = []

    def flush(self) -> None:
        self.flushed.append(self.getvalue())


def test_an_answer_is_written_as_it_grows_and_summed_up(engine: Engine) -> None:
    [expected] = engine.generate(["def "], 10)
    out = Pieces()
    answer = stream_answer(engine, "def ", CONFIG, out)
    assert out.getvalue() == expected.text == answer["text"]
    assert len(out.flushed) > 1, "piece by piece"
    assert (answer["num_tokens"], answer["num_steps"]) == (len(expected.ids), expected.num_steps)
    assert answer["finish_reason"] == "length" and answer["tau"] == round(expected.tau, 3)


def test_settings_reach_the_engine(engine: Engine) -> None:
    config = InferConfig(max_new_tokens=20, temperature=0.9, top_p=0.8, seed=7)
    [expected] = engine.generate(["def "], 20, temperature=0.9, top_p=0.8, seed=7)
    assert stream_answer(engine, "def ", config, io.StringIO())["text"] == expected.text
    stop = expected.text[5]
    config = InferConfig(max_new_tokens=20, temperature=0.9, top_p=0.8, seed=7, stop=stop)
    answer = stream_answer(engine, "def ", config, io.StringIO())
    assert answer["text"] == expected.text.split(stop)[0] and answer["finish_reason"] == "stop"


def test_a_base_without_a_template_goes_on_with_each_line(engine: Engine) -> None:
    summary, out = talk(engine, "first line\n", "second\n", "\n", "not read\n")
    answers = engine.generate(["first line"], 10) + engine.generate(["second"], 10)
    assert out.startswith(f"{engine.base.path}, text continuation: this base has no chat template\n{HELP}\n> ")
    for answer in answers:
        assert f"> {answer.text}\n[{len(answer.ids)} tokens, tau {answer.tau:.3f}".rstrip("0") in out
    tokens, steps = (sum(values) for values in zip(*((len(a.ids), a.num_steps) for a in answers), strict=True))
    assert summary == {"num_answers": 2, "num_tokens": tokens, "tau": tokens / steps}


def test_a_conversation_is_remembered_until_new(talking: Engine) -> None:
    _, out = talk(talking, "hello\n", "and?\n", "/new\n", "and?\n")
    first = answer_to(talking, ("user", "hello"))
    second = answer_to(talking, ("user", "hello"), ("assistant", first), ("user", "and?"))
    anew = answer_to(talking, ("user", "and?"))
    assert f", chat\n{HELP}" in out
    parts = [part.split("\n[")[0] for part in out.split("> ")[1:]]
    assert parts == [first, second, "", anew, "\n"] and second != anew


def test_the_end_of_the_input_or_an_empty_line_ends_the_chat(engine: Engine) -> None:
    for lines in ([], ["\n"], ["  \n", "more\n"], ["/new\n"]):
        assert talk(engine, *lines)[0] == {"num_answers": 0, "num_tokens": 0, "tau": None}


def test_a_last_line_without_an_end_is_answered(engine: Engine) -> None:
    assert talk(engine, "no end")[0]["num_answers"] == 1


def test_a_chat_that_outgrew_the_context_says_so_and_goes_on(talking: Engine) -> None:
    summary, out = talk(talking, "hello\n", "x" * 300 + "\n", "again\n", "/new\n", "hello\n")
    assert "error: the prompt has" in out and "Shorten the prompt. (/new starts over)" in out
    assert summary["num_answers"] == 3, "what was too long is forgotten, the rest is not"
    first = answer_to(talking, ("user", "hello"))
    third = answer_to(talking, ("user", "hello"), ("assistant", first), ("user", "again"))
    assert f"> {third}\n[" in out


def test_a_plain_prompt_to_a_chat_model_is_noticed(engine: Engine, talking: Engine) -> None:
    asked = talking.base.tokenizer
    assert "leave prompt out (a chat opens)" in str(notice_of_plain_text("What is rain?", asked))
    assert notice_of_plain_text(f"{asked.all_special_tokens[0]}u:What is rain?\na:", asked) is None
    assert notice_of_plain_text("What is rain?", engine.base.tokenizer) is None


def test_a_whole_prompt_is_read_as_it_is() -> None:
    assert read_all(io.StringIO("two\nlines\n")) == "two\nlines\n"
    assert read_all(io.StringIO("")) == ""
    assert read_all(io.StringIO("\ufefftwo")) == "two", "a text as some editors save it"


def test_bytes_that_are_no_text_are_refused(engine: Engine) -> None:
    with patch.object(euryale.cli.chat, "MOST_CHARACTERS", 4):
        assert read_all(io.StringIO("two")) == "two"
        with pytest.raises(UserError, match="stdin must be a prompt of fewer than 4 characters; got more"):
            read_all(io.StringIO("four"))
    with open(os.devnull, "w") as unreadable, pytest.raises(UserError, match="stdin must be readable"):
        read_all(unreadable)
    with pytest.raises(UserError, match="stdin must be UTF-8 text; got other bytes"):
        read_all(io.TextIOWrapper(io.BytesIO(b"caf\xe9"), encoding="utf-8"))
    with pytest.raises(UserError, match="stdin must be UTF-8 text"):
        read_all(io.TextIOWrapper(io.BytesIO(b"caf\xe9"), encoding="ascii", errors="surrogateescape"))
    with pytest.raises(UserError, match="stdin must be UTF-8 text"):
        chat(engine, CONFIG, io.TextIOWrapper(io.BytesIO(b"\xff\n"), encoding="utf-8"), io.StringIO())
