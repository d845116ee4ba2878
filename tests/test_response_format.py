"""Answers in a form over HTTP: OpenAI's response_format, and vLLM's structured_outputs and guided fields."""

import json
import random
import re
import sys
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest
from json_bases import json_base, json_tokenizer
from on_loopback import MODEL, Running, running
from openai import OpenAI
from pydantic import BaseModel
from random_models import HEAD_DESIGNS, random_heads, random_tree
from world_tokenizers import base_with, gpt2

from euryale.decoding.engine import Engine
from euryale.server.response_format import FormFields
from euryale.server.scheduler_adapter import SchedulerAdapter

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}, "b": {"enum": ["ab", "ba", None]}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
BY_SCHEMA = {"type": "json_schema", "json_schema": {"name": "pair", "schema": SCHEMA, "strict": True}}
CHOICES = ["a.b", "a b", "1+[2]", "x-y", "\u00e9"]

SHORT = {
    str(token): 20.0 for token in json_tokenizer().convert_tokens_to_ids(['"', "}", "]"])
}  # what closes, closes soon


@pytest.fixture(scope="module")
def engine() -> Engine:
    base = json_base(seed=3)
    return Engine(base, random_heads(HEAD_DESIGNS[0], base), "heads", random_tree(random.Random(5), 4, 3, 9))


@pytest.fixture(scope="module")
def server(engine: Engine) -> Iterator[Running]:
    backend = SchedulerAdapter(engine, MODEL, num_rows=4, row_tokens=128, temperature=0.0)
    vocab_size = engine.base.vocab_size
    with running(backend, tokenizer=engine.base.tokenizer, vocab_size=vocab_size) as started:
        yield started


def test_an_answer_in_a_schema_is_the_text_of_the_engine_streamed_or_not(server: Running, engine: Engine) -> None:
    fields: dict[str, Any] = {"prompt": "ab12", "seed": 5, "n": 2, "max_tokens": 60, "response_format": BY_SCHEMA}
    for temperature in (0.0, 0.8):
        answer = server.complete(**fields, temperature=temperature).json()
        rows = [engine.encode("ab12")] * 2
        expected = engine.generate(rows, 60, temperature=temperature, seed=[5, 6], json_schema=SCHEMA)
        assert [choice["text"] for choice in answer["choices"]] == [row.text for row in expected]
        for choice in answer["choices"]:
            assert choice["finish_reason"] == "stop"
            jsonschema_rs.validate(SCHEMA, json.loads(choice["text"]))
        streamed = server.complete(**fields, temperature=temperature, stream=True).events()
        pieces = [choice["text"] for event in streamed for choice in event["choices"] if choice["index"] == 1]
        assert "".join(pieces) == expected[1].text


def test_a_chat_in_json_is_an_object(server: Running) -> None:
    fields = {"logit_bias": SHORT, "max_tokens": 100, "seed": 1}
    answer = server.chat(response_format={"type": "json_object"}, **fields).json()
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert isinstance(json.loads(answer["choices"][0]["message"]["content"]), dict)
    plain = server.chat(response_format={"type": "text"}, max_tokens=5, temperature=0).json()
    assert plain["choices"] == server.chat(max_tokens=5, temperature=0).json()["choices"]


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"structured_outputs": {"regex": "[0-9]{3}"}}, "[0-9]{3}"),
        ({"structured_outputs": {"choice": CHOICES}}, "|".join(map(re.escape, CHOICES))),
        ({"structured_outputs": {"json": {"const": "ab"}}}, '"ab"'),
        ({"structured_outputs": {"json_object": True}}, r"(?s)\{.*\}"),
        ({"guided_regex": "[0-9]{3}"}, "[0-9]{3}"),
        ({"guided_choice": ["ab", "ba"]}, "ab|ba"),
        ({"guided_json": {"const": "ab"}}, '"ab"'),
        ({"guided_json": '{"const": "ab"}'}, '"ab"'),
    ],
)
def test_the_fields_of_vllm_are_followed(server: Running, fields: dict[str, Any], pattern: str) -> None:
    for seed in range(3):
        choice = server.complete(**fields, max_tokens=100, seed=seed, logit_bias=SHORT).json()["choices"][0]
        assert choice["finish_reason"] == "stop" and re.fullmatch(pattern, choice["text"]), choice


def test_openai_reads_an_answer_into_a_model(server: Running) -> None:
    class Pair(BaseModel):
        a: bool
        b: None

    with OpenAI(base_url=f"{server.url}/v1", api_key="none", _strict_response_validation=True) as client:
        messages: Any = [{"role": "user", "content": "ab"}]
        answer = client.chat.completions.parse(
            model=MODEL, messages=messages, response_format=Pair, max_tokens=90, temperature=0
        )
    assert isinstance(answer.choices[0].message.parsed, Pair)


def test_any_text_can_be_a_choice() -> None:
    """Python's escapes are not Rust's by themselves."""
    odd = [
        'a"b',
        "a/b",
        "<b>",
        "a\nb",
        "#a",
        "a\\b",
        "~&",
        "\t",
        "\u201c",
        "a'b`",
        "^$*+?{}[]()@!%=;:,",
        "-|-",
        "\u0000",
        "\U0001f600",
    ]
    base = base_with(gpt2())
    for text in odd:
        form = FormFields.model_validate({"guided_choice": [text]}).form
        assert form is not None
        (answer,) = Engine(base, drafter="none").generate([[5]], 40, regex=form.regex)
        assert answer.text == text and answer.finish_reason == "stop"


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "must be given"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
         "response_format.json_schema.schema", "must be given"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "'json_object'"),
        ({"response_format": "json_object"}, "response_format", ""),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "integerx"}}}},
         "response_format", "Invalid type: integerx"),
        ({"guided_json": {"uniqueItems": True, "type": "array"}}, "guided_json", "Unimplemented keys"),
        ({"guided_json": "[1, 2]"}, "guided_json", "json_schema must be a mapping"),
        ({"guided_json": 5}, "guided_json", "guided_json must be a JSON schema or its text; got 5"),
        ({"structured_outputs": {"json": 5}}, "structured_outputs.json", "must be a JSON schema or its text"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs", "regex must be one that llguidance can follow"),
        ({"structured_outputs": {"grammar": "root ::= a"}}, "structured_outputs.grammar", "not supported"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice", ""),
        ({"guided_grammar": "root ::= a"}, "guided_grammar", "not supported"),
        ({"guided_json": {}, "guided_regex": "a"}, "guided_regex", "one form only"),
        ({"guided_regex": "a" * 120_001}, "guided_regex", "at most 120000 characters"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_a_form_that_cannot_be_is_a_400_before_anything_is_written(
    server: Running, fields: dict[str, Any], param: str, message: str, stream: bool
) -> None:
    reply = server.complete(**fields, stream=stream)
    assert reply.status == 400 and reply.error["param"] == param and message in reply.error["message"], reply.body
    assert server.chat(**fields, stream=stream).status == 400


def test_without_llguidance_a_form_is_a_400_that_names_the_package(
    monkeypatch: pytest.MonkeyPatch, engine: Engine
) -> None:
    backend = SchedulerAdapter(engine, MODEL, num_rows=1, row_tokens=64, temperature=0.0)
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with running(backend, tokenizer=json_tokenizer(), vocab_size=engine.base.vocab_size) as server:
        reply = server.complete(response_format={"type": "json_object"})
        assert reply.status == 400 and reply.error["param"] == "response_format"
        assert "llguidance" in reply.error["message"] and "pip install" in reply.error["message"]
        assert server.complete(prompt="ab", max_tokens=2).status == 200
