"""One replica of a server on Ray Serve: an engine of its own, and the application of infer/serve.py around it."""

import asyncio
import logging
import os
from dataclasses import replace
from typing import Any

from ray import serve

from euryale.cli.open_engine import open_engine
from euryale.cli.open_server import make_backend, make_service
from euryale.cli.script import use_threads
from euryale.cli.serve_schema import ServeRayConfig
from euryale.server.app import build_app
from euryale.server.asgi import App
from euryale.server.replica_metrics import Told, merge

TELL_SECONDS = 1.0  # between two reports to the board
log = logging.getLogger(__name__)


class Replica:
    """Made by Ray in a process of its own."""

    def __init__(self, config: ServeRayConfig, board: Any, folder: str) -> None:
        """Called within an event loop. board: Ray's handle of a Board; folder: from which paths in the settings go."""
        os.chdir(folder)
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        self._config = replace(config, threads=config.threads or config.cores)
        use_threads(self._config.threads, config.deterministic)
        self._name = serve.get_replica_context().replica_id.unique_id
        self._board = board
        engine = open_engine(self._config)
        self._service = make_service(make_backend(engine, self._config), engine, self._config)
        self._service.gather = self._gather
        self._is_drained = False
        self._drain_task: asyncio.Task[None] | None = None
        self._tell_task = asyncio.create_task(self._tell_always())

    def __serve_build_asgi_app__(self) -> App:
        """For serve.ingress. Ray runs the lifespan, which starts and stops the engine thread."""
        return build_app(self._service, self._config)

    async def check_health(self) -> None:
        """Asked by Ray, which replaces a replica where this raises."""
        if not self._service.is_alive:
            raise RuntimeError("the engine does not answer")

    async def _tell(self) -> dict[str, str]:
        totals = self._service.totals
        own = self._service.metrics.exposition().decode()
        told = Told(own, totals.num_requests, totals.num_tokens, self._is_drained)
        alive, is_draining = await self._board.tell.remote(self._name, told)
        if is_draining and self._drain_task is None:
            self._drain_task = asyncio.create_task(self._drain())
        return alive

    async def _gather(self) -> bytes:
        return merge(await self._tell())

    async def _tell_always(self) -> None:
        while True:
            await self._tell()
            await asyncio.sleep(TELL_SECONDS)

    async def _drain(self) -> None:
        await self._service.drain(self._config.drain)
        self._is_drained = True
        await self._tell()
