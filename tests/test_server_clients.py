"""Foreign clients: openai's with strict validation of every answer, and schemathesis with all that OpenAPI allows."""

import asyncio
from collections.abc import Iterator
from typing import Any

import hypothesis
import openai
import pytest
import schemathesis
from on_loopback import MODEL, Running, running
from openai import AsyncOpenAI, OpenAI
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

MESSAGES: Any = [{"role": "user", "content": "abc"}]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running() as started:
        yield started


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[OpenAI]:
    settings: dict[str, Any] = {"api_key": "none", "max_retries": 0, "timeout": 20, "_strict_response_validation": True}
    with OpenAI(base_url=f"{server.url}/v1", **settings) as made:
        yield made


def test_openai_reads_models_and_completions(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "euryale"
    answer = client.completions.create(model=MODEL, prompt="abc", max_tokens=5, logprobs=2, echo=False, seed=1)
    assert answer.choices[0].text == "abcab" and answer.usage is not None and answer.usage.completion_tokens == 5
    assert answer.choices[0].logprobs is not None and answer.choices[0].logprobs.token_logprobs is not None
    assert len(answer.choices[0].logprobs.token_logprobs) == 5
    # Its type of an event forgets that finish_reason is null until the last one.
    with OpenAI(base_url=client.base_url, api_key="none") as lenient:
        pieces = lenient.completions.create(model=MODEL, prompt="abc", max_tokens=5, stream=True)
        assert "".join(piece.choices[0].text for piece in pieces) == "abcab"


def test_openai_reads_chats(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=6, logprobs=True, top_logprobs=2)
    text = answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "length" and answer.choices[0].logprobs is not None
    assert answer.model_extra is not None and answer.model_extra["euryale"]["drafter"] == "heads"
    options: Any = {"include_usage": True}
    pieces = list(
        client.chat.completions.create(
            model=MODEL, messages=MESSAGES, max_tokens=6, stream=True, stream_options=options, logprobs=True
        )
    )
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices) == text
    assert pieces[-1].usage is not None and pieces[-1].usage.completion_tokens == 6
    with client.chat.completions.stream(model=MODEL, messages=MESSAGES, max_tokens=6, stop="zz") as stream:
        assert "content.delta" in [event.type for event in stream]


@pytest.mark.parametrize(
    ("fields", "error"),
    [({"model": "other"}, openai.NotFoundError), ({"temperature": 9}, openai.BadRequestError),
     ({"max_tokens": 10**6}, openai.BadRequestError)],
)  # fmt: skip
def test_openai_raises_its_own_errors(
    client: OpenAI, fields: dict[str, Any], error: type[openai.APIStatusError]
) -> None:
    with pytest.raises(error) as raised:
        client.chat.completions.create(**({"model": MODEL, "messages": MESSAGES} | fields))
    assert raised.value.param in ("model", "temperature", "max_tokens") and raised.value.type == "invalid_request_error"


def test_openai_may_stop_reading_a_stream(server: Running) -> None:
    server.backend.step_seconds = 0.005

    async def read_one() -> None:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
            stream = await made.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
            async for _ in stream:
                await stream.close()
                break

    asyncio.run(read_one())
    server.wait_until(lambda: server.backend.num_live == 0)
    server.backend.step_seconds = 0.0


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=lambda mode: mode.value)
def test_schemathesis_finds_no_failure(server: Running, mode: schemathesis.GenerationMode) -> None:
    """A fixed seed; every answer has a documented status and shape, and none is the server's fault."""
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    checks = [not_a_server_error, status_code_conformance, response_schema_conformance]
    statuses: list[int] = []
    for result in schema.get_all_operations():
        operation = result.ok()
        if mode.is_negative and operation.method == "get":  # nothing can be wrong with it
            continue

        @hypothesis.seed(1)
        @hypothesis.settings(
            max_examples=8, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
        )
        @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
        def ask(case: Any) -> None:
            statuses.append(case.call_and_validate(checks=checks, timeout=20).status_code)

        ask()
    assert len(statuses) > 25 and set(statuses) <= {200, 400, 404, 405, 415}
    server.wait_until(lambda: server.backend.num_live == 0 and server.service.admission.num_taken == 0)
