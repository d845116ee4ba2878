"""/tokenize and /detokenize, and what monitoring asks: /health, /ready, /metrics."""

from fastapi import APIRouter
from starlette.responses import PlainTextResponse, Response

from euryale.server.answers import Detokenized, Tokenized
from euryale.server.errors import unknown_model
from euryale.server.json_route import JsonRoute
from euryale.server.metrics import CONTENT_TYPE
from euryale.server.planning import messages_of
from euryale.server.schemas import DetokenizeRequest, TokenizeRequest
from euryale.server.service import Service


def token_routes(service: Service) -> APIRouter:
    """vLLM's routes for a client that counts tokens."""
    router = APIRouter(route_class=JsonRoute)

    @router.post("/tokenize", response_model_exclude_unset=True)
    async def tokenize(request: TokenizeRequest) -> Tokenized:
        _check_model(service, request.model)
        if request.messages is not None:
            ids = await service.tokens.encode_chat(messages_of(request.messages))
        else:
            assert request.prompt is not None, "the schema wants one of both"
            ids = await service.tokens.encode(request.prompt, request.add_special_tokens is not False)
        answer = Tokenized(count=len(ids), max_model_len=service.info.row_tokens, tokens=ids)
        if request.return_token_strs:
            answer.token_strs = [service.tokens.text_of(token) for token in ids]
        return answer

    @router.post("/detokenize")
    async def detokenize(request: DetokenizeRequest) -> Detokenized:
        _check_model(service, request.model)
        service.tokens.check_ids(request.tokens, "tokens")
        return Detokenized(prompt=await service.tokens.decode(request.tokens))

    return router


def state_routes(service: Service) -> APIRouter:
    """Health is whether the process should live, ready whether requests should come here."""
    router = APIRouter()
    unavailable = {503: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "not now"}}

    @router.get("/health", response_class=PlainTextResponse, responses=unavailable)  # type: ignore[arg-type]
    async def health() -> Response:
        return PlainTextResponse("" if service.is_alive else "the engine does not answer", _status(service.is_alive))

    @router.get("/ready", response_class=PlainTextResponse, responses=unavailable)  # type: ignore[arg-type]
    async def ready() -> Response:
        return PlainTextResponse("" if service.is_ready else "not ready", _status(service.is_ready))

    @router.head("/metrics", include_in_schema=False)  # aiperf looks whether it is there
    @router.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        return PlainTextResponse(await service.exposition(), media_type=CONTENT_TYPE)

    return router


def _check_model(service: Service, model: str | None) -> None:
    if model is not None and model != service.model.name:
        raise unknown_model(model, service.model.name)


def _status(is_good: bool) -> int:
    return 200 if is_good else 503
