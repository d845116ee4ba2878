"""Bad input: each kind has its status and OpenAI's envelope, and none reaches the engine."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fake_engine import INFO, Failure, FakeEngine
from on_loopback import MODEL, Running, running

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running() as started:
        yield started


@pytest.fixture
def untouched(server: Running) -> Iterator[Running]:
    """The engine must not have been asked."""
    before = len(server.backend.started)
    yield server
    assert len(server.backend.started) == before
    assert server.service.admission.num_taken == 0


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": 10**400}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
        ({"min_p": 2}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"n": True}, "n"),
        ({"prompt": ["a"] * 9, "n": 2}, "prompt"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 254}, "max_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"min_tokens": 17}, "min_tokens"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": "a" * 257}, "stop"),
        ({"stop": 5}, "stop"),
        ({"stop_token_ids": [40]}, "stop_token_ids"),
        ({"stop_token_ids": [-1]}, "stop_token_ids.0"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"logit_bias": {"40": 1}}, "logit_bias"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"\u0663": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1"),
        ({"logit_bias": {str(i): 1 for i in range(301)}}, "logit_bias"),
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": {"text": "a"}}, "prompt"),
        ({"prompt": [40]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [2**31]}, "prompt"),
        ({"prompt": [0] * 257}, "prompt"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": 3}}, "stream_options.include_usage"),
        ({"best_of": 2}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"guided_json": {}}, "guided_json"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"echo": 1}, "echo"),
    ],
    ids=lambda value: json.dumps(value)[:40] if isinstance(value, dict) else "",
)
def test_a_wrong_field_of_a_completion_is_named(untouched: Running, fields: dict[str, Any], param: str) -> None:
    reply = untouched.complete(**fields)
    assert reply.status == 400, reply.body
    error = reply.error
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert error["message"].isascii() and len(error["message"]) < 400
    assert param.split(".")[0] in error["message"] or param == "max_tokens"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": [{"content": "a"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages.0.content"),
        ({"messages": ["hello"]}, "messages.0"),
        ({"messages": [{"role": "wizard", "content": "a"}]}, "messages.0.role"),
        ({"messages": [{"role": "User", "content": "a"}]}, "messages.0.role"),
        ({"messages": [{"role": "", "content": "a"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "assistant", "content": None}]}, "messages.0.content"),
        ({"messages": [{"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}]}, "messages.0.tool_calls"),
        ({"messages": [{"role": "assistant", "function_call": {"name": "f"}}]}, "messages.0.function_call"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": 1}, "logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"modalities": ["audio"]}, "modalities"),
    ],
    ids=lambda value: json.dumps(value)[:40] if isinstance(value, dict) else "",
)
def test_a_wrong_field_of_a_chat_is_named(untouched: Running, fields: dict[str, Any], param: str) -> None:
    reply = untouched.chat(**fields)
    assert reply.status == 400, reply.body
    assert reply.error["param"] == param


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"nothing", b"[]", b"5", b"null", b'"text"', b"\xff\xfe", b'{"model": "tiny", "prompt": "\xff"}',
        b'{"model": "tiny", "prompt": "\\ud800"}', b'{"model": "tiny", "prompt": "a", "temperature": NaN}',
        b'{"model": "tiny", "prompt": "a", "temperature": Infinity}',
        b'{"model": "tiny", "prompt": "a", "seed": ' + b"9" * 5000 + b"}", b"[" * 100_000,
        b'{"model": "tiny", "prompt": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", b'{"model": "tiny", "prompt": "a"} x',
    ],
    ids=lambda body: repr(body[:24]),
)  # fmt: skip
@pytest.mark.parametrize("path", [COMPLETIONS, CHAT, "/tokenize", "/detokenize"])
def test_a_body_that_is_not_a_json_object_is_refused(untouched: Running, path: str, body: bytes) -> None:
    reply = untouched.ask("POST", path, body)
    assert reply.status == 400
    assert reply.error["type"] == "invalid_request_error" and reply.error["message"].isascii()


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status"),
    [
        ("POST", COMPLETIONS, {"model": "other", "prompt": "a"}, {}, 404),
        ("POST", CHAT, {"model": "other", "messages": [{"role": "user", "content": "a"}]}, {}, 404),
        ("POST", "/tokenize", {"model": "other", "prompt": "a"}, {}, 404),
        ("POST", "/v1/embeddings", {"model": MODEL, "input": "a"}, {}, 404),
        ("GET", "/v1", None, {}, 404),
        ("GET", "/v1/models/", None, {}, 404),
        ("GET", "/docs", None, {}, 404),
        ("GET", "/../../etc/passwd", None, {}, 404),
        ("GET", "/assets/../../app.py", None, {}, 404),
        ("GET", "/%2e%2e/%2e%2e/app.py", None, {}, 404),
        ("GET", "/assets/..%2f..%2fapp.py", None, {}, 404),
        ("GET", "/assets/%00", None, {}, 404),
        ("GET", "//etc/passwd", None, {}, 404),
        ("GET", COMPLETIONS, None, {}, 405),
        ("DELETE", "/v1/models", None, {}, 405),
        ("OPTIONS", CHAT, None, {}, 405),
        ("POST", "/health", b"{}", {}, 405),
        ("POST", COMPLETIONS, b'{"model": "tiny", "prompt": "a"}', {"Content-Type": "text/plain"}, 415),
        ("POST", COMPLETIONS, b"model=tiny", {"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ("POST", COMPLETIONS, b"{}", {"Content-Type": ""}, 415),
        ("POST", COMPLETIONS, b"{}", {"Content-Type": "application/json; charset=utf-16"}, 415),
        ("POST", COMPLETIONS, b" " * (2**20 + 1), {}, 413),
    ],
)  # fmt: skip
def test_other_mistakes_have_their_status(
    untouched: Running, method: str, path: str, body: Any, headers: dict[str, str], status: int
) -> None:
    reply = untouched.ask(method, path, body, headers)
    assert reply.status == status
    assert reply.error["message"]


def test_lists_of_wrong_length_say_which_lengths_there_are(untouched: Running) -> None:
    error = untouched.chat(messages=[]).error
    assert error["message"] == "messages must have at least 1 entries; got 0."
    turn = {"role": "user", "content": "a"}
    error = untouched.chat(messages=[turn] * 2049).error
    assert error["message"] == "messages must have at most 2048 entries; got 2049."
    error = untouched.chat(messages=[turn], logit_bias={str(token): 1 for token in range(301)}).error
    assert error["message"] == "logit_bias must have at most 300 entries; got 301."
    error = untouched.chat(messages=[turn], stop=["a"] * 17).error
    assert error["message"].startswith("stop must be a string or a list of at most 16 strings, of 1 to 256 characters")


def test_a_prompt_and_answer_beyond_the_context_have_openais_code(untouched: Running) -> None:
    error = untouched.complete(prompt=[0] * 250, max_tokens=7).error
    assert error["code"] == "context_length_exceeded" and "256" in error["message"]
    assert untouched.chat(messages=[{"role": "user", "content": "a" * 300}]).error["code"] == "context_length_exceeded"


def test_an_empty_prompt_is_the_begin_of_text_token(server: Running) -> None:
    assert server.complete(prompt="", max_tokens=1).json()["usage"]["prompt_tokens"] == 1


def test_what_the_engine_refuses_is_the_clients_mistake() -> None:
    with running(FakeEngine(refusal="no row is that long. Ask for less.")) as server:
        for is_stream in (False, True):
            reply = server.complete(stream=is_stream)
            assert (reply.status, reply.error["message"]) == (400, "no row is that long. Ask for less.")


@pytest.mark.parametrize(("is_users", "status"), [(True, 400), (False, 500)])
def test_an_answer_that_cannot_go_on_is_an_error(is_users: bool, status: int) -> None:
    with running(FakeEngine(error=Failure("no token is left. CANARY", is_users))) as server:
        reply = server.complete()
        assert reply.status == status and ("CANARY" in reply.error["message"]) == is_users


def test_logprobs_are_refused_where_the_engine_has_none() -> None:
    with running(FakeEngine(INFO._replace(has_logprobs=False))) as server:
        assert server.complete(logprobs=1).error["param"] == "logprobs"
        assert server.chat(logprobs=True).status == 400
