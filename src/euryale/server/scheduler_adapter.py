"""The one place where the server meets the decode loop: jobs of backend.py on an engine's scheduler.

A job without drafter runs in a scheduler of its own, made when the first one comes.
"""

import gc
from dataclasses import asdict, dataclass
from functools import partial

from euryale.decoding.accept import LOSSY
from euryale.decoding.engine import Engine
from euryale.decoding.record import Record
from euryale.decoding.request import Generation, Request
from euryale.decoding.scheduler import Scheduler
from euryale.server.backend import BackendInfo, Ending, Failure, FinishReason, Job, Progress, StepView

_REASONS: dict[str, FinishReason] = {
    "eos": "stop",
    "stop": "stop",
    "length": "length",
    "context": "length",
    "cancelled": "cancelled",
}
_NO_TOKEN_LEFT = "no token is left to write"  # how the decoder says that the settings forbid all
_PLAIN_ROWS = 2


@dataclass
class _Live:
    """A job in a scheduler, and how much of it was told."""

    job: Job
    scheduler: Scheduler
    request: Request
    num_told: int = 0


class SchedulerAdapter:
    """A Backend (backend.py) made of an engine's schedulers."""

    def __init__(
        self, engine: Engine, model: str, num_rows: int, row_tokens: int, temperature: float, prefix_tokens: int = 0
    ) -> None:
        """temperature: that trees are chosen for. model: the name that errors call the base by.

        prefix_tokens: of earlier texts that are kept for prompts that begin as they did, where that is exact.

        Raises UserError: numbers out of range.
        """
        self._engine = engine
        self._plain_engine = Engine(engine.base, drafter="none")
        self._model = model
        self._prefix_tokens = prefix_tokens
        self._make_scheduler = partial(
            engine.scheduler, num_rows, row_tokens, temperature=temperature, chunked_prefill=True
        )
        self._scheduler: Scheduler | None = self._make_scheduler()
        self._plain: Scheduler | None = None
        self.keeps_prefixes = self._scheduler.remember_prefixes(prefix_tokens)
        self._live: dict[Job, _Live] = {}
        self.info = BackendInfo(
            engine.drafter.name,
            num_rows,
            self._scheduler.row_tokens,
            engine.base.vocab_size,
            engine.max_depth(temperature),
            is_lossless=engine.accept.name not in LOSSY,
            has_logprobs=True,
        )

    @property
    def num_live(self) -> int:
        return len(self._live)

    def start(self, job: Job) -> None:
        """Takes a job. Raises UserError for what the scheduler refuses."""
        scheduler = self._scheduler_of(job)
        request = scheduler.submit(
            job.prompt,
            job.max_tokens,
            job.seed,
            list(job.stop),
            job.stop_ids,
            job.ignore_eos,
            record=_record_of(job),
            **asdict(job.sampling),
        )
        self._live[job] = _Live(job, scheduler, request)

    def step(self) -> list[Progress]:
        """One step of both schedulers."""
        before = {engine: dict(engine.seconds) for engine in (self._engine, self._plain_engine)}
        for scheduler in (self._scheduler, self._plain):
            if scheduler is not None and not scheduler.is_idle:
                scheduler.step()
        parts_ms = {
            engine: {part: round((engine.seconds[part] - seconds) * 1000, 3) for part, seconds in parts.items()}
            for engine, parts in before.items()
        }
        progress = [
            self._news(live, parts_ms[self._plain_engine if live.scheduler is self._plain else self._engine])
            for live in self._live.values()
        ]
        for item in progress:
            if item.is_last:
                del self._live[item.job]
        return progress

    def cancel(self, job: Job) -> None:
        live = self._live.pop(job, None)
        if live is not None:
            live.scheduler.cancel(live.request)

    def reset(self) -> None:
        """New schedulers; the memory of the old ones is given back first."""
        self._live.clear()
        self._scheduler = self._plain = None
        gc.collect()  # a failed step leaves its tensors in a traceback's frames
        self._scheduler = self._make_scheduler()
        self._scheduler.remember_prefixes(self._prefix_tokens)

    def seconds(self) -> dict[str, float]:
        plain = self._plain_engine.seconds
        return {part: seconds + plain[part] for part, seconds in self._engine.seconds.items()}

    def num_nodes(self) -> int:
        """Nodes of a row's tree in the last step of any live row."""
        return max((live.request.nodes[-1] for live in self._live.values() if live.request.nodes), default=1)

    def _scheduler_of(self, job: Job) -> Scheduler:
        if not job.with_drafter and self.info.drafter != "none":
            if self._plain is None:
                self._plain = self._plain_engine.scheduler(min(_PLAIN_ROWS, self.info.num_rows), self.info.row_tokens)
            return self._plain
        assert self._scheduler is not None, "reset() makes a scheduler"
        return self._scheduler

    def _news(self, live: _Live, parts_ms: dict[str, float]) -> Progress:
        request, generation, record = live.request, live.request.generation, live.request.record
        if request.error is not None:
            message = request.error.replace(self._engine.base.path, self._model)
            return Progress(live.job, failure=Failure(message, message.startswith(_NO_TOKEN_LEFT)))
        ids = request.ids[live.num_told :]
        is_first = live.num_told == 0 and bool(ids)
        progress = Progress(live.job, ids, request.new_text() if live.job.wants_text else "")
        progress.ending = None if generation is None else _ending(generation, request.num_cached)
        if record is not None:
            progress.logprobs = record.logprobs[live.num_told :]
            progress.prompt_logprobs = record.prompt_logprobs if record.wants_prompt and is_first else None
            if record.step is not None:
                progress.view = StepView(*record.step, parts_ms)
                record.step = None  # told once
        live.num_told += len(ids)
        return progress


def _record_of(job: Job) -> Record | None:
    if job.num_logprobs is None and not job.wants_prompt_logprobs and not job.is_watched:
        return None
    return Record(job.num_logprobs, job.wants_prompt_logprobs, job.is_watched)


def _ending(generation: Generation, num_cached: int) -> Ending:
    return Ending(
        _REASONS[generation.finish_reason],
        generation.text,
        generation.ids,
        generation.accepted,
        generation.nodes,
        generation.is_lossless,
        num_cached,
    )
