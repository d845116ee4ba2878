"""The ASGI application: routes, and around them the layers that refuse, bound and contain."""

import logging
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from euryale.server.answers import ErrorBody
from euryale.server.asgi import App, Receive, Scope, Send, refuse
from euryale.server.config import ServerConfig
from euryale.server.errors import ApiError, failed, from_validation
from euryale.server.guard import Guard
from euryale.server.live import Socket
from euryale.server.openai_routes import openai_routes
from euryale.server.page import FOLDER, page_routes
from euryale.server.security import Security
from euryale.server.service import Service
from euryale.server.state_routes import state_routes, token_routes
from euryale.server.traces import trace_of

log = logging.getLogger(__name__)
_ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "the request is at fault"},
    "5XX": {"model": ErrorBody, "description": "the server is at fault, or has no place"},
}


def build_app(service: Service, config: ServerConfig, page_folder: Path = FOLDER) -> App:
    """The application of one service; its lifespan starts and stops the engine thread."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()

    api = FastAPI(
        title="Euryale",
        version=service.model.version,
        lifespan=lifespan,
        docs_url=None,  # the usual page loads its scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    api.include_router(openai_routes(service), responses=_ERRORS)
    api.include_router(token_routes(service), responses=_ERRORS)
    api.include_router(state_routes(service))
    api.add_exception_handler(ApiError, _tell_api_error)
    api.add_exception_handler(RequestValidationError, _tell_validation_error)
    api.add_exception_handler(HTTPException, _tell_http_error)
    api.add_exception_handler(Exception, _tell_failure)
    api.router.routes.extend(page_routes(page_folder))
    api.openapi = lambda: _describe(api, service)  # type: ignore[method-assign]
    security = Security(api, config)

    @api.websocket("/ws")
    async def watch(websocket: WebSocket) -> None:
        await Socket(service, websocket, security.is_key).serve()

    return Contain(Guard(security, service.timeouts, service.stopping))


class Contain:
    """What no other layer caught: a bug. The client gets a 500 without details, the log the place without texts."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_begun = False

        async def watched(message: Any) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        scope["euryale.request_id"] = request_id = f"req-{uuid.uuid4().hex}"
        try:
            await self._app(scope, receive, watched)
        except Exception as error:  # the edge of the process
            log.error("%s failed: %s", request_id, trace_of(error))
            if not has_begun:
                await refuse(failed(request_id), scope, send)


async def _tell_api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.envelope(), error.status, error.headers)


async def _tell_validation_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return await _tell_api_error(_, from_validation(error.errors()))


async def _tell_http_error(request: Request, error: Exception) -> Response:
    """Starlette's own: a path or a method that is not there."""
    assert isinstance(error, HTTPException)
    messages = {
        404: "this path does not exist. GET /openapi.json lists those that do.",
        405: f"this path does not take {request.method}.",
    }
    told = ApiError(error.status_code, messages.get(error.status_code, str(error.detail)), headers=error.headers)
    return await _tell_api_error(request, told)


async def _tell_failure(request: Request, _: Exception) -> Response:
    """A bug. Starlette raises it again, and Contain logs it."""
    return await _tell_api_error(request, failed(request.scope["euryale.request_id"]))


def _describe(api: FastAPI, service: Service) -> dict[str, Any]:
    """The OpenAPI document, with the model and the vocabulary that are served."""
    if api.openapi_schema is None:
        document = get_openapi(title=api.title, version=api.version, routes=api.routes)
        schemas = document["components"]["schemas"]
        for name in ("CompletionRequest", "ChatRequest", "TokenizeRequest", "DetokenizeRequest"):
            properties = schemas[name]["properties"]
            properties["model"] = {"type": "string", "enum": [service.model.name]}
            _narrow(properties, service.info.vocab_size - 1)
        api.openapi_schema = document
    return api.openapi_schema


def _narrow(schema: Any, largest_id: int) -> None:
    """Token ids end at the vocabulary's last."""
    if isinstance(schema, dict):
        if schema.get("exclusiveMaximum") == 2**31 and schema.get("minimum") == 0:
            del schema["exclusiveMaximum"]
            schema["maximum"] = largest_id
        for value in schema.values():
            _narrow(value, largest_id)
    elif isinstance(schema, list):
        for value in schema:
            _narrow(value, largest_id)
