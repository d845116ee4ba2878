"""One watched generation on a WebSocket: start, steps and end of each of its runs."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from euryale.server.backend import Ending
from euryale.server.collector import News
from euryale.server.errors import bad_request, timed_out
from euryale.server.generation import Generation
from euryale.server.live_messages import DEFAULT_TOKENS, Generate, LiveSampling, tree_fields
from euryale.server.planning import Plan, messages_of, plan_jobs
from euryale.server.service import Service

SendJson = Callable[[dict[str, Any]], Awaitable[None]]


class LiveRun:
    """Answers a `generate` message: one run, or with `compare` one without drafter and then one with it."""

    def __init__(self, service: Service, request: Generate, send: SendJson) -> None:
        self.request = request
        self._service = service
        self._send = send
        self._names = ("ar", "heads") if request.compare else ("heads",)
        self._teller: _Teller | None = None  # of the run that goes on
        self._limit: asyncio.Timeout | None = None
        self._is_cancelled = False

    def cancel(self) -> None:
        """Ends the run that goes on, with a message of its own, and leaves out the next."""
        self._is_cancelled = True
        if self._limit is not None and not self._limit.expired():
            self._limit.reschedule(asyncio.get_running_loop().time())

    async def run(self) -> None:
        """Raises ApiError for what cannot be, or failed."""
        if self.request.compare and self._service.info.drafter == "none":
            raise bad_request("compare needs a drafter, and this server has none. Leave it out.", "compare")
        places = self._service.admit(1)
        deadline = self._service.timeouts.deadline
        try:
            async with asyncio.timeout(0 if self._is_cancelled else deadline) as self._limit:
                plan = await self._plan()
                for name in self._names:
                    await self._run_once(name, plan)
        except TimeoutError:
            if not self._is_cancelled:
                raise timed_out(deadline) from None
            await self._send(self._cancelled())
        finally:
            self._limit = None
            places.release()

    def _cancelled(self) -> dict[str, Any]:
        if self._teller is not None:
            return self._teller.cancelled()
        head = {"type": "end", "id": self.request.id, "run": self._names[0], "finish_reason": "cancelled"}
        return head | {"text": "", "ids": [], "t_ms": 0.0, "steps": 0, "dropped": 0, "missed": ""}

    async def _plan(self) -> Plan:
        request, tokens = self.request, self._service.tokens
        if request.messages is not None:
            ids = await tokens.encode_chat(messages_of(request.messages))
        else:
            ids = await tokens.encode(request.prompt or "")
        sampling = request.sampling or LiveSampling()
        room = max(self._service.info.row_tokens - len(ids), 1)
        # The default is cut to what the context leaves; a number that was asked for is refused beyond it.
        max_tokens = min(DEFAULT_TOKENS, room) if sampling.max_tokens is None else sampling.max_tokens
        return plan_jobs(sampling.as_request(self._service.model.name), [ids], max_tokens, self._service.info)

    async def _run_once(self, name: str, plan: Plan) -> None:
        job = replace(plan.jobs[0], is_watched=True, wants_text=True, with_drafter=name != "ar")
        generation = self._service.generate(replace(plan, jobs=[job]), f"ws-{self.request.id}")
        self._teller = _Teller(self._service, generation, self._send, {"id": self.request.id, "run": name})
        try:
            while not generation.is_finished:
                for _, news in await generation.take():
                    await self._teller.tell(news)
        finally:
            generation.cancel()


class _Teller:
    """Says what happens in one run, and keeps count of what its watcher was told."""

    def __init__(self, service: Service, generation: Generation, send: SendJson, head: dict[str, Any]) -> None:
        self._service = service
        self._generation = generation
        self._send = send
        self._head = head
        self._text = ""  # that became visible
        self._num_told = 0  # characters of it that went out with a step
        self._num_sent = 0  # steps
        self._num_steps = 0  # those that were lost included

    async def tell(self, news: News) -> None:
        self._text += news.text
        self._num_steps += len(news.steps) + news.num_dropped
        if news.is_admitted:
            await self._send(self._start())
        dropped, missed = news.num_dropped, news.missed
        for step in news.steps:
            message = {
                "type": "step",
                **self._head,
                "i": step.number,
                "t_ms": self._ms(step.at),
                **tree_fields(step.view, self._service.tokens.text_of),
                "text": step.text,
                "dropped": dropped,
                "missed": missed,
            }
            await self._send(message)
            self._num_told += len(missed) + len(step.text)
            self._num_sent += 1
            dropped, missed = 0, ""
        if news.ending is not None:
            self._num_steps = len(news.ending.accepted)
            await self._send(self._end(news.ending))

    def cancelled(self) -> dict[str, Any]:
        """The end of a run that its client cancelled."""
        return self._end(Ending("cancelled", self._text, self._generation.sequences[0].ids, [], [], True))

    def _start(self) -> dict[str, Any]:
        service, timing = self._service, self._generation.sequences[0].timing
        assert timing.admitted is not None, "this is told when it is"
        return {
            "type": "start",
            **self._head,
            "model": service.model.name,
            "drafter": service.info.drafter if self._generation.plan.jobs[0].with_drafter else "none",
            "seed": self._generation.plan.seed,
            "prompt_tokens": len(self._generation.plan.prompts[0]),
            "queue_ms": round((timing.admitted - timing.submitted) * 1000, 3),
        }

    def _end(self, ending: Ending) -> dict[str, Any]:
        timing = self._generation.sequences[0].timing
        return {
            "type": "end",
            **self._head,
            "finish_reason": ending.finish_reason,
            "text": ending.text,
            "ids": ending.ids,
            "t_ms": self._ms(timing.ended) if timing.ended is not None else 0.0,
            "steps": self._num_steps,
            "dropped": self._num_steps - self._num_sent,
            "missed": ending.text[self._num_told :],
        }

    def _ms(self, at: float) -> float:
        """Since the run was admitted."""
        admitted = self._generation.sequences[0].timing.admitted
        return round((at - (at if admitted is None else admitted)) * 1000, 3)
