"""WS /ws: the socket of the live page. It knows who asks, reads messages and sends `metrics` twice a second."""

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from euryale.server.errors import ApiError, bad_request, failed, shutting_down
from euryale.server.live_messages import VERSION, BadMessage, Cancel, Generate, Hello, error_message, read_message
from euryale.server.live_run import LiveRun
from euryale.server.service import Service
from euryale.server.traces import trace_of

CLOSE_REFUSED = 1008
CLOSE_RESTART = 1012
log = logging.getLogger(__name__)


class Socket:
    """One connection; at most one generation at a time."""

    def __init__(self, service: Service, websocket: WebSocket, is_key: Callable[[str | None], bool]) -> None:
        self._service = service
        self._websocket = websocket
        self._is_key = is_key
        self._run: LiveRun | None = None
        self._task: asyncio.Task[None] | None = None

    async def serve(self) -> None:
        """Until the client leaves, is refused, or the server shuts down."""
        await self._websocket.accept()
        tasks: list[asyncio.Task[None]] = []
        try:
            if not await self._hello():
                return
            await self._send(self._ready())
            tasks = [asyncio.create_task(work()) for work in (self._read, self._send_metrics, self._wait_for_stop)]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        except WebSocketDisconnect:
            pass
        finally:
            await _end([*tasks, *([self._task] if self._task else [])])

    async def _hello(self) -> bool:
        """Whether the client said in time who it is."""
        try:
            async with asyncio.timeout(self._service.timeouts.hello):
                while not isinstance(message := await self._next_understood(), Hello):
                    error = bad_request("the first message must be hello.", "type", "bad_message")
                    await self._send(error_message(error, message.id))
        except TimeoutError:
            await self._websocket.close(CLOSE_REFUSED)
            return False
        if self._is_key(message.key):
            return True
        text = "the API key is missing or wrong. Send it with hello."
        await self._send(error_message(ApiError(401, text, "key", "unauthorized", "authentication_error"), None))
        await self._websocket.close(CLOSE_REFUSED)
        return False

    async def _read(self) -> None:
        while True:
            message = await self._next_understood()
            if isinstance(message, Cancel) and self._run is not None and self._run.request.id == message.id:
                self._run.cancel()
            elif isinstance(message, Generate):
                await self._start(message)

    async def _next_understood(self) -> Hello | Generate | Cancel:
        """Raises WebSocketDisconnect when the client has gone."""
        while True:
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message.get("code", 1005))
            try:
                return read_message(message.get("text") or message.get("bytes"))
            except BadMessage as bad:
                await self._send(error_message(bad.error, bad.request_id))

    async def _start(self, request: Generate) -> None:
        if self._task is not None and not self._task.done():
            text = "a generation of this socket is running. Cancel it, or wait for its end."
            await self._send(error_message(ApiError(409, text, None, "busy"), request.id))
            return
        self._run = LiveRun(self._service, request, self._send)
        self._task = asyncio.create_task(self._generate(self._run))

    async def _generate(self, run: LiveRun) -> None:
        try:
            await run.run()
        except ApiError as error:
            await self._send(error_message(error, run.request.id))
            if error.code == "shutting_down":
                await self._websocket.close(CLOSE_RESTART)
        except WebSocketDisconnect:  # while something was sent; the reader ends the socket
            return
        except Exception as error:  # a bug: the page is told, the socket stays
            log.error("ws-%s failed: %s", run.request.id, trace_of(error))
            await self._send(error_message(failed(f"ws-{run.request.id}"), run.request.id))

    async def _send_metrics(self) -> None:
        while True:
            meter = self._service.meter
            await self._send(
                {
                    "type": "metrics",
                    "running": meter.num_live,
                    "waiting": meter.num_waiting,
                    "max_running": self._service.info.num_rows,
                    "tokens_per_s": meter.tokens_per_second(),
                    "tau": meter.tau(),
                }
            )
            await asyncio.sleep(self._service.timeouts.metrics)

    async def _wait_for_stop(self) -> None:
        await self._service.stopping.wait()
        is_running = self._run is not None and self._task is not None and not self._task.done()
        await self._send(error_message(shutting_down(), self._run.request.id if is_running and self._run else None))
        await self._websocket.close(CLOSE_RESTART)

    def _ready(self) -> dict[str, Any]:
        service = self._service
        return {
            "type": "ready",
            "v": VERSION,
            "model": service.model.name,
            "drafter": service.info.drafter,
            "max_model_len": service.info.row_tokens,
            "chat": service.tokens.has_chat_template,
            "lossless": service.info.is_lossless,
            "version": service.model.version,
        }

    async def _send(self, message: dict[str, Any]) -> None:
        if self._websocket.application_state is not WebSocketState.CONNECTED:  # closed by another task
            raise WebSocketDisconnect
        await self._websocket.send_text(json.dumps(message, separators=(",", ":"), allow_nan=False))


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    """Cancels what still runs. A task that failed otherwise than by a client that left is a bug."""
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, Exception) and not isinstance(result, WebSocketDisconnect):
            log.error("a socket failed: %s", trace_of(result))
