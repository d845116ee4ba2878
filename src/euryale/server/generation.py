"""The life of one request's sequences: started together, read as they grow, cancelled where nobody reads on."""

from dataclasses import dataclass, field

from euryale.decoding.record import TokenLogprob
from euryale.server.backend import Ending, Progress
from euryale.server.collector import Collector, News, Timing
from euryale.server.engine_thread import EngineThread
from euryale.server.planning import Plan
from euryale.server.tickets import Ticket

_NOTHING = Ending("length", "", [], [], [], True)


@dataclass
class Written:
    """All of one sequence so far."""

    timing: Timing
    ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob | None] | None = None
    ending: Ending | None = None

    def as_news(self) -> News:
        """All of it, once it has ended."""
        assert self.ending is not None
        return News(self.ids, self.ending.text, self.logprobs, self.prompt_logprobs, ending=self.ending)


class Generation:
    """The sequences of a plan, from `start` until all have ended or `cancel`."""

    def __init__(self, plan: Plan, request_id: str, thread: EngineThread, now: float, pause: float = 0.0) -> None:
        """pause: seconds that news of more tokens wait at least after the last ones were taken."""
        self.plan = plan
        self.request_id = request_id
        self._thread = thread
        self._collector = Collector(len(plan.jobs), now, pause)
        self.sequences = [Written(timing) for timing in self._collector.timings]

    def start(self) -> None:
        """Raises ApiError 503 where the engine has given up."""
        if self.plan.needs_engine:
            jobs = enumerate(self.plan.jobs)
            self._thread.submit([Ticket(job, self._collector, index, self.request_id) for index, job in jobs])
            return
        for index, job in enumerate(self.plan.jobs):
            submitted = self.sequences[index].timing.submitted
            self._collector.put(index, Progress(job, ending=_NOTHING), submitted)

    @property
    def is_finished(self) -> bool:
        return all(sequence.ending is not None for sequence in self.sequences)

    async def take(self) -> list[tuple[int, News]]:
        """The next news, by sequence. Raises the ApiError that ended one of them."""
        taken = await self._collector.take()
        for index, news in taken:
            if news.error is not None:
                raise news.error
            if self.plan.max_tokens == 0:  # the engine writes one token at least: it is not part of the answer
                news.ids, news.text, news.logprobs = [], "", []
                news.ending = _NOTHING if news.ending is not None else None
            sequence = self.sequences[index]
            sequence.ids += news.ids
            sequence.logprobs += news.logprobs
            sequence.prompt_logprobs = sequence.prompt_logprobs or news.prompt_logprobs
            sequence.ending = news.ending or sequence.ending
        return taken

    def cancel(self) -> None:
        """Ends what has not ended."""
        open_jobs = [job for job, written in zip(self.plan.jobs, self.sequences, strict=True) if written.ending is None]
        if open_jobs:
            self._thread.cancel(open_jobs)
