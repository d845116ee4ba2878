"""uvicorn's HTTP and WebSocket protocols with the bounds that it leaves out.

By itself uvicorn 0.54 keeps silent connections, slow heads and readers that never read for ever, and answers what it
cannot parse in plain text. These classes use its internals: pyproject.toml pins it.
"""

import asyncio
import json
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from euryale.server.errors import ApiError
from euryale.server.limits import HEAD_BYTES, RETRY_AFTER_SECONDS, Timeouts

MAX_CONNECTIONS = 1000

if TYPE_CHECKING:
    _Protocol = asyncio.Protocol
else:
    _Protocol = object


class _StallGuard(_Protocol):
    """Cuts a connection whose client does not read what was sent."""

    timeouts = Timeouts()
    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    _stall: asyncio.TimerHandle | None = None

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stall is None:
            self._stall = self.loop.call_later(self.timeouts.stall, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._forget_stall()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_stall()
        super().connection_lost(exc)

    def _forget_stall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None


class GuardedHttp(_StallGuard, H11Protocol):
    """A request's head must be whole in time, counted from the connection or from its first byte on a kept one."""

    _head: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()
        if len(self.connections) > MAX_CONNECTIONS:
            error = ApiError(
                503,
                f"more than {MAX_CONNECTIONS} connections are open. Try again later.",
                None,
                "overloaded",
                "server_error",
                {"Retry-After": str(RETRY_AFTER_SECONDS)},
            )
            self._end_with(error)

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        is_idle = self.cycle is not None and self.cycle.response_complete
        if is_idle and self._head is None:
            self._expect_head()
        super().data_received(data)

    def handle_events(self) -> None:
        before = self.scope
        super().handle_events()
        if self.scope is not before:
            self._forget_head()

    def send_400_response(self, msg: str) -> None:
        """What h11 could not parse; a head that is too long among it."""
        self._forget_head()
        if len(self.conn.trailing_data[0]) > HEAD_BYTES:
            error = ApiError(431, f"the request's head must be at most {HEAD_BYTES} bytes. Send fewer headers.")
        else:
            error = ApiError(400, "the request must be valid HTTP/1.1.")
        self._end_with(error)

    def _expect_head(self) -> None:
        self._forget_head()
        self._head = self.loop.call_later(self.timeouts.head, self._miss_head)

    def _forget_head(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _miss_head(self) -> None:
        self._head = None
        if self.conn.trailing_data[0]:
            self._end_with(ApiError(408, f"the request's head must arrive within {self.timeouts.head:g} s."))
        else:
            self.transport.abort()

    def _end_with(self, error: ApiError) -> None:
        """Answers before there is a request that h11 could answer, and closes."""
        body = json.dumps(error.envelope()).encode()
        lines = [
            f"HTTP/1.1 {error.status} {STATUS_PHRASES[error.status].decode()}",
            "content-type: application/json",
            f"content-length: {len(body)}",
            "connection: close",
            *(f"{name.lower()}: {value}" for name, value in error.headers.items()),
        ]
        self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)
        self.transport.close()


class GuardedWebSocket(_StallGuard, WebSocketsSansIOProtocol):
    """Messages are bounded by uvicorn's ws_max_size."""


def guarded(timeouts: Timeouts) -> tuple[type[Any], type[Any]]:
    """Both protocol classes, with these times."""
    return (
        type("GuardedHttp", (GuardedHttp,), {"timeouts": timeouts}),
        type("GuardedWebSocket", (GuardedWebSocket,), {"timeouts": timeouts}),
    )
