"""Serves an application until a signal, a dead engine or an error of the socket ends it."""

import asyncio
import logging
import signal
import socket
from types import FrameType

import uvicorn

from euryale.errors import UserError
from euryale.server.asgi import App
from euryale.server.config import ServerConfig
from euryale.server.limits import BODY_BYTES, HEAD_BYTES
from euryale.server.protocol import guarded
from euryale.server.service import Service

LAST_SECONDS = 5  # for responses that were cut off to reach their clients
_CUT = "asyncio.exceptions.CancelledError"
log = logging.getLogger(__name__)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a record of uvicorn is more than a request, or the application's own task, that was cut off at the end.

    What Starlette says of the latter is a traceback as a text.
    """
    is_cut = record.exc_info is not None and isinstance(record.exc_info[1], asyncio.CancelledError)
    return not is_cut and not record.getMessage().rstrip().endswith(_CUT)


class DrainingServer(uvicorn.Server):
    """The first signal drains: new requests get 503 and live ones go on for a while. The second ends at once.

    uvicorn by itself closes its socket at the first signal, and tells the application only after the last response.
    """

    def __init__(self, service: Service, config: uvicorn.Config, drain_seconds: float) -> None:
        super().__init__(config)
        self.has_died = False
        self._service = service
        self._drain_seconds = drain_seconds
        self._loop: asyncio.AbstractEventLoop | None = None
        self._drain_task: asyncio.Task[None] | None = None
        service.on_death = self._die

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            url = f"http://{shown}:{port}"
            log.info("serving %s at %s: the live page; OpenAI's API at %s/v1", self._service.model.name, url, url)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Logs nothing itself: the signal may come while this thread writes a line, and a stream that is being written
        to raises when the same thread writes to it again."""
        if self._loop is None or self._service.is_draining:
            self.should_exit = True
            self.force_exit = sig == signal.SIGINT
            self._cut()
        else:
            self._service.is_draining = True
            self._loop.call_soon_threadsafe(self.begin_drain)

    def begin_drain(self) -> None:
        """In the event loop."""
        log.info("draining for up to %g s; a second signal ends at once", self._drain_seconds)
        self._service.is_draining = True
        self._drain_task = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        await self._service.drain(self._drain_seconds)
        self.should_exit = True

    def _cut(self) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._service.stopping.set)

    def _die(self) -> None:
        self.has_died = True
        self._service.stopping.set()
        self.should_exit = True


def make_server(service: Service, app: App, config: ServerConfig) -> DrainingServer:
    """The server, not yet listening."""
    http, websocket = guarded(service.timeouts)
    logging.getLogger("uvicorn.error").addFilter(_is_news)
    settings = uvicorn.Config(
        app,
        host=config.host,
        port=config.port,
        loop="asyncio",
        http=http,
        ws=websocket,
        ws_max_size=BODY_BYTES,
        h11_max_incomplete_event_size=HEAD_BYTES,
        timeout_keep_alive=service.timeouts.keep_alive,
        timeout_graceful_shutdown=LAST_SECONDS,
        log_config=None,
        log_level="warning",
        access_log=False,  # its lines hold paths and queries
        server_header=False,
        lifespan="on",
    )
    return DrainingServer(service, settings, config.drain)


def serve(service: Service, app: App, config: ServerConfig) -> dict[str, object]:
    """Runs until it is stopped. Returns what it did.

    Raises UserError where the address is taken, and SystemExit(1) after the engine has given up.
    """
    server = make_server(service, app, config)
    try:
        server.run()
    except SystemExit as error:  # uvicorn's, when it cannot listen
        raise UserError(f"host={config.host} port={config.port} cannot be listened at. Choose another port.") from error
    if server.has_died:
        raise SystemExit(1)
    return {"num_requests": service.totals.num_requests, "num_tokens": service.totals.num_tokens}
