"""FastAPI routes whose bodies are read by a strict JSON parser, and 415 for any other type.

Python's own parser takes NaN, lone surrogates and 10,000 brackets; jiter, which pydantic brings, refuses them. The
content type is insisted on because a browser sends any other one across sites without asking first.
"""

from collections.abc import Callable, Coroutine
from email.message import Message
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic_core import from_json

from euryale.server.errors import ApiError, bad_request


class JsonRequest(Request):
    """A request whose body is JSON."""

    async def json(self) -> Any:
        try:
            return from_json(await self.body(), allow_inf_nan=False)
        except ValueError as error:
            raise bad_request(f"the body must be JSON in UTF-8: {error}.") from None


class JsonRoute(APIRoute):
    """Hands JsonRequest to the handler that FastAPI makes."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_json(request: Request) -> Response:
            if request.method == "POST":
                _check_type(request.headers.get("content-type"))
                request = JsonRequest(request.scope, request.receive)
                if not await request.body():
                    raise bad_request("the body must be a JSON object; got nothing.")
                await request.json()  # here: FastAPI makes one message of whatever its own call raises
            return await handle(request)

        return handle_json


def _check_type(content_type: str | None) -> None:
    """Raises ApiError 415."""
    message = Message()
    message["content-type"] = content_type or "none"
    if content_type is None or message.get_content_type() != "application/json":
        raise ApiError(415, "the header Content-Type must be application/json. Send the body as JSON.")
    charset = message.get_param("charset")
    if charset is not None and str(charset).lower() not in ("utf-8", "utf8"):
        raise ApiError(415, "the body must be in UTF-8. Leave the charset out.")
