"""Bounds on the head and the body of every request, before any route sees it.

A plain ASGI layer: Starlette's BaseHTTPMiddleware would hide from the routes that a client has gone.
"""

import asyncio

from euryale.server.asgi import App, Message, Receive, Scope, Send, header, refuse
from euryale.server.errors import ApiError, shutting_down
from euryale.server.limits import BODY_BYTES, HEAD_BYTES, Timeouts

# A body up to here is read, and forgotten, before it is refused: a client that still writes when the connection closes
# sees a reset instead of the answer.
READ_BYTES = 8 * BODY_BYTES


class Guard:
    """Reads the whole body, at most BODY_BYTES within the time for it, and hands it on in one piece.

    Where `stopping` is set no body is waited for any more.
    """

    def __init__(self, app: App, timeouts: Timeouts, stopping: asyncio.Event) -> None:
        self._app = app
        self._timeouts = timeouts
        self._stopping = stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        try:
            _check_head(scope)
            if scope["type"] == "websocket":
                await self._app(scope, receive, send)
                return
            body = await self._body_unless_stopping(scope, receive)
        except ApiError as error:
            await refuse(error, scope, send)
            return
        if body is None:  # the client has gone
            return
        unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Message:
            return unread.pop() if unread else await receive()

        await self._app(scope, again, send)

    async def _body_unless_stopping(self, scope: Scope, receive: Receive) -> bytes | None:
        """Raises ApiError 413, 408 or 503."""
        reading = asyncio.ensure_future(self._body(scope, receive))
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait((reading, stopping), return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                raise shutting_down()
            return reading.result()
        finally:
            reading.cancel()
            stopping.cancel()

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """Raises ApiError 413 or 408."""
        announced = header(scope, b"content-length")
        if announced is not None and announced.isdigit() and int(announced[:20]) > READ_BYTES:
            raise _too_large()
        body, size = bytearray(), 0
        try:
            async with asyncio.timeout(self._timeouts.body):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    size += len(message.get("body", b""))
                    if size <= BODY_BYTES:
                        body += message.get("body", b"")
                    is_whole = not message.get("more_body", False)
                    if size > READ_BYTES or (is_whole and size > BODY_BYTES):
                        raise _too_large()
                    if is_whole:
                        return bytes(body)
        except TimeoutError:
            raise ApiError(408, f"the body must arrive within {self._timeouts.body:g} s. Send it again.") from None


def _check_head(scope: Scope) -> None:
    """Raises ApiError 431. The protocol bounds heads that come in pieces; one in a single piece gets this far."""
    size = len(scope["raw_path"]) + len(scope["query_string"])
    if size + sum(len(name) + len(value) + 4 for name, value in scope["headers"]) > HEAD_BYTES:
        raise ApiError(431, f"the request's head must be at most {HEAD_BYTES} bytes. Send fewer headers.")


def _too_large() -> ApiError:
    return ApiError(413, f"the body must be at most {BODY_BYTES} bytes. Send less at once.")
