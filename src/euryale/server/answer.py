"""The response of a generation request: as JSON when all is written, or as server-sent events while it is.

Everything a request holds is taken and given back in one place, whether the client stays, leaves or is too slow:
places before tokenising, jobs at the engine, and the task that notices that the client has gone.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from pydantic import BaseModel
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from euryale.server.collector import News
from euryale.server.errors import ApiError, failed, shutting_down, timed_out
from euryale.server.generation import Generation
from euryale.server.service import Service
from euryale.server.traces import trace_of

_EVENTS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache", "x-accel-buffering": "no"}
_JSON = {"content-type": "application/json"}
log = logging.getLogger(__name__)


class Writer(Protocol):
    """CompletionWriter or ChatWriter."""

    def events(self, index: int, news: News) -> Sequence[BaseModel]: ...
    def last_events(self) -> Sequence[BaseModel]: ...
    def answer(self) -> BaseModel: ...


Prepare = Callable[[], Awaitable[tuple[Generation, Writer]]]


class Answer(Response):
    """Runs when Starlette sends it. Errors before the first byte are raised, later ones become the last event."""

    def __init__(
        self, service: Service, request_id: str, num_sequences: int, is_stream: bool, prepare: Prepare
    ) -> None:
        """prepare: tokenises and starts the generation, once there are places for it."""
        super().__init__()
        self._service = service
        self._request_id = request_id
        self._num_sequences = num_sequences
        self._is_stream = is_stream
        self._prepare = prepare
        self._generation: Generation | None = None
        self._has_begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = time.perf_counter()
        places = self._service.admit(self._num_sequences)
        outcome = "failed"
        try:
            outcome = await self._run(receive, send)
        except ApiError as error:
            outcome = error.code or str(error.status)
            if not self._has_begun:
                raise
            await self._send_error(send, error)
        except Exception as error:  # a bug: the client is told, in the stream where that has begun
            log.error("%s failed: %s", self._request_id, trace_of(error))
            if not self._has_begun:
                raise failed(self._request_id) from None
            await self._send_error(send, failed(self._request_id))
        except asyncio.CancelledError:  # by uvicorn, when the time for draining is over
            outcome = "shutting_down"
            raise
        finally:
            places.release()
            if self._generation is not None:
                self._generation.cancel()
            self._tell(outcome, time.perf_counter() - start)

    async def _run(self, receive: Receive, send: Send) -> str:
        """Raises ApiError: 504 after the deadline, 503 at shutdown, and what the engine answers."""
        deadline = self._service.timeouts.deadline
        cut: list[str] = []
        try:
            async with asyncio.timeout(deadline) as limit:
                watchers = [
                    asyncio.create_task(_cut_when(wait, limit, cut, why))
                    for wait, why in (
                        (lambda: _until_gone(receive), "disconnected"),
                        (self._service.stopping.wait, "stopping"),
                    )
                ]
                try:
                    self._generation, writer = await self._prepare()
                    if self._is_stream:
                        await self._stream(self._generation, writer, send)
                    else:
                        await self._whole(self._generation, writer, send)
                finally:
                    for watcher in watchers:
                        watcher.cancel()
        except TimeoutError:
            if cut == ["disconnected"]:
                return "disconnected"
            raise (shutting_down() if cut else timed_out(deadline)) from None
        return "finished"

    async def _whole(self, generation: Generation, writer: Writer, send: Send) -> None:
        while not generation.is_finished:
            await generation.take()
        body = writer.answer().model_dump_json(exclude_unset=True).encode()
        await self._begin(send, _JSON | {"content-length": str(len(body))})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    async def _stream(self, generation: Generation, writer: Writer, send: Send) -> None:
        """The head goes out with the first event, so that what fails before it has a status of its own."""
        while not generation.is_finished:
            events = [event for index, news in await generation.take() for event in writer.events(index, news)]
            if generation.is_finished:
                events += writer.last_events()
            await self._send_events(send, [event.model_dump_json(exclude_unset=True) for event in events])
        await self._send_events(send, ["[DONE]"], is_last=True)

    async def _send_error(self, send: Send, error: ApiError) -> None:
        if self._is_stream:
            body = ErrorEvent(error=error.envelope()["error"]).model_dump_json()
            await self._send_events(send, [body, "[DONE]"], is_last=True)

    async def _send_events(self, send: Send, events: Sequence[str], is_last: bool = False) -> None:
        if not events:
            return
        await self._begin(send, _EVENTS)
        body = "".join(f"data: {event}\n\n" for event in events).encode()
        await send({"type": "http.response.body", "body": body, "more_body": not is_last})

    async def _begin(self, send: Send, headers: dict[str, str]) -> None:
        if self._has_begun:
            return
        self._has_begun = True
        headers = headers | {"x-request-id": self._request_id}
        raw_headers = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": 200, "headers": raw_headers})

    def _tell(self, outcome: str, seconds: float) -> None:
        """One line in the log: numbers alone, nothing of a text."""
        generation = self._generation
        num_prompt = sum(map(len, generation.plan.prompts)) if generation else 0
        num_written = sum(len(written.ids) for written in generation.sequences) if generation else 0
        self._service.totals.num_requests += 1
        if outcome != "finished":
            self._service.metrics.cancel(outcome)
        log.info(
            "%s %s: %d sequences, %d prompt tokens, %d written, %.3f s",
            self._request_id,
            outcome,
            self._num_sequences,
            num_prompt,
            num_written,
            seconds,
        )


class ErrorEvent(BaseModel):
    """The last event of a stream that failed."""

    error: dict[str, str | None]


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cut_when(wait: Callable[[], Awaitable[object]], limit: asyncio.Timeout, cut: list[str], why: str) -> None:
    """Ends the time of a request early."""
    await wait()
    if not limit.expired():
        cut.append(why)
        limit.reschedule(asyncio.get_running_loop().time())
