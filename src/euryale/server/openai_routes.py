"""/v1/models, /v1/completions and /v1/chat/completions."""

import time
import uuid
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from euryale.server.answer import Answer, Writer
from euryale.server.answers import ChatCompletion, Completion, ModelCard, ModelList
from euryale.server.chat import ChatWriter
from euryale.server.completions import CompletionWriter
from euryale.server.errors import bad_request, unknown_model
from euryale.server.generation import Generation
from euryale.server.json_route import JsonRoute
from euryale.server.planning import DEFAULT_COMPLETION_TOKENS, messages_of, plan_jobs
from euryale.server.schemas import ChatRequest, CompletionRequest
from euryale.server.service import Service

_EVENT = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}


def openai_routes(service: Service) -> APIRouter:
    """The routes of OpenAI's API that this server has."""
    router = APIRouter(route_class=JsonRoute)

    @router.get("/v1/models")
    async def list_models() -> ModelList:
        return ModelList(object="list", data=[_card(service)])

    @router.get("/v1/models/{model:path}")
    async def show_model(model: str) -> ModelCard:
        _check_model(service, model)
        return _card(service)

    @router.post("/v1/completions", response_class=Response, responses=_described(Completion))
    async def complete(request: CompletionRequest) -> Response:
        return _complete(service, request)

    @router.post("/v1/chat/completions", response_class=Response, responses=_described(ChatCompletion))
    async def chat(request: ChatRequest) -> Response:
        return _chat(service, request)

    return router


def _complete(service: Service, request: CompletionRequest) -> Answer:
    """Raises ApiError for what shows before anything is tokenised."""
    _check_model(service, request.model)
    prompts = _prompts(request.prompt)
    num_sequences = len(prompts) * (request.n or 1)
    _check_sequences(service, num_sequences, "prompt" if len(prompts) > 1 else "n")
    request_id = f"cmpl-{uuid.uuid4().hex}"

    async def prepare() -> tuple[Generation, Writer]:
        ids = [await _ids(service, prompt, request.add_special_tokens is not False) for prompt in prompts]
        texts = [prompt if isinstance(prompt, str) else None for prompt in prompts]
        max_tokens = DEFAULT_COMPLETION_TOKENS if request.max_tokens is None else request.max_tokens
        wants_prompt = bool(request.echo) and request.logprobs is not None
        plan = plan_jobs(request, ids, max_tokens, service.info, request.logprobs, wants_prompt)
        await service.tokens.check_form(request.form, plan.jobs[0].sampling)
        shown = [await service.tokens.decode(p) if t is None else t for t, p in zip(texts, ids, strict=True)]
        generation = service.generate(plan, request_id)
        head = _head(service, request_id, "text_completion")
        return generation, CompletionWriter(request, generation, service.info, head, shown, service.tokens.text_of)

    return Answer(service, request_id, num_sequences, bool(request.stream), prepare)


def _chat(service: Service, request: ChatRequest) -> Answer:
    """Raises ApiError for what shows before anything is tokenised."""
    _check_model(service, request.model)
    messages = messages_of(request.messages)
    max_tokens = request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens
    if max_tokens == 0:
        raise bad_request("max_tokens must be at least 1; got 0.", "max_tokens")
    num_sequences = request.n or 1
    _check_sequences(service, num_sequences, "n")
    request_id = f"chatcmpl-{uuid.uuid4().hex}"

    async def prepare() -> tuple[Generation, Writer]:
        ids = [await service.tokens.encode_chat(messages)]
        num_logprobs = (request.top_logprobs or 0) if request.logprobs else None
        plan = plan_jobs(request, ids, max_tokens, service.info, num_logprobs)
        await service.tokens.check_form(request.form, plan.jobs[0].sampling)
        generation = service.generate(plan, request_id)
        head = _head(service, request_id, "chat.completion.chunk" if request.stream else "chat.completion")
        return generation, ChatWriter(request, generation, service.info, head, service.tokens.text_of)

    return Answer(service, request_id, num_sequences, bool(request.stream), prepare)


def _prompts(prompt: str | list[str] | list[int] | list[list[int]]) -> Sequence[str | list[int]]:
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt[0], int):
        return [prompt]
    return prompt


async def _ids(service: Service, prompt: str | list[int], add_special_tokens: bool) -> list[int]:
    if isinstance(prompt, str):
        return await service.tokens.encode(prompt, add_special_tokens)
    service.tokens.check_ids(prompt, "prompt")
    return prompt


def _check_model(service: Service, model: str) -> None:
    if model != service.model.name:
        raise unknown_model(model, service.model.name)


def _check_sequences(service: Service, num_sequences: int, param: str) -> None:
    if num_sequences > service.max_sequences:
        raise bad_request(
            f"prompts times n must be at most {service.max_sequences} sequences; got {num_sequences}. Send them in "
            "several requests.",
            param,
        )


def _head(service: Service, request_id: str, kind: str) -> dict[str, Any]:
    return {
        "id": request_id,
        "object": kind,
        "created": int(time.time()),
        "model": service.model.name,
        "system_fingerprint": f"euryale-{service.model.version}",
    }


def _card(service: Service) -> ModelCard:
    model = service.model
    return ModelCard(
        id=model.name,
        object="model",
        created=model.created,
        owned_by="euryale",
        max_model_len=service.info.row_tokens,
    )


def _described(answer: type) -> dict[int | str, dict[str, Any]]:
    """What the OpenAPI document says of an answer: JSON, or server-sent events with stream=true."""
    return {200: {"model": answer, "content": {"text/event-stream": {"schema": _EVENT}}}}
