"""Answers of a proxy that stands before replicas, in the shape of our own.

A replica can be killed in the middle of an answer, and the proxy by itself then says 500 without a reason, or ends a
stream as if it were whole. Here a client gets 503 and Retry-After, or an error event in its stream: it may ask again,
and another replica answers.
"""

import json
from typing import Any

from starlette.middleware import Middleware

from euryale.server.asgi import App, Receive, Scope, Send, header, refuse
from euryale.server.errors import replica_lost

_OWN_PATHS = ("/health", "/ready")  # whose 503 is plain text, and a replica's
CALLBACK = "euryale.server.replica_proxy.layers"  # for Ray Serve, which imports it in its proxy


def layers() -> list[Middleware]:
    """What the proxy puts around itself."""
    return [Middleware(Lost)]


class Lost:
    """Replaces what the proxy says by itself, and ends streams that were cut off with an error event."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith("/-/"):  # the proxy's own paths
            await self._app(scope, receive, send)
            return
        answer = _Answer(scope["path"], send)
        try:
            await self._app(scope, receive, answer.send)
        finally:
            await answer.finish(scope)


class _Answer:
    """An answer on its way through the proxy."""

    def __init__(self, path: str, send: Send) -> None:
        self._path = path
        self._send = send
        self._has_begun = self._has_ended = self._is_stream = self._is_replaced = False

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self._is_replaced = self._is_proxys(message)
            self._is_stream = "text/event-stream" in _content_type(message)
            self._has_begun = not self._is_replaced
        elif message["type"] == "http.response.body" and not self._is_replaced:
            self._has_ended = not message.get("more_body", False)
        if not self._is_replaced:
            await self._send(message)

    async def finish(self, scope: Scope) -> None:
        """What is missing for a client to know where it stands. An answer of a known length just breaks off."""
        if not self._has_begun:
            await refuse(replica_lost(), scope, self._send)
        elif self._is_stream and not self._has_ended:
            event = f"data: {json.dumps(replica_lost().envelope())}\n\ndata: [DONE]\n\n".encode()
            await self._send({"type": "http.response.body", "body": event, "more_body": False})

    def _is_proxys(self, message: Any) -> bool:
        """Whether the proxy itself speaks: it answers errors in plain text, and 404 while no replica is there."""
        status = message["status"]
        if not _content_type(message).startswith("text/plain"):
            return False
        return status in (404, 408, 429, 500) or (status == 503 and self._path not in _OWN_PATHS)


def _content_type(message: Any) -> str:
    return header({"headers": message.get("headers", [])}, b"content-type") or ""
