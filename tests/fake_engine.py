"""A backend for tests of the server: it writes the letters of the prompt again and again, one or two a step.

Not a test file itself. It keeps what was asked of it, can be slow, and fails when it is told to.
"""

import itertools
import threading
import time
from dataclasses import dataclass, field

from random_models import letter_tokenizer

from euryale.decoding.record import Bonus, StepNode, TokenLogprob
from euryale.errors import UserError
from euryale.server.backend import (
    BackendInfo,
    Ending,
    Failure,
    Job,
    Progress,
    StepView,
)

VOCAB_SIZE = 40
CRASH = "CANARY in the message of a crash"  # a constant, because a traceback shows the line that raises
TOKENIZER = letter_tokenizer(VOCAB_SIZE, bos_id=VOCAB_SIZE - 1)
INFO = BackendInfo("heads", 4, 256, VOCAB_SIZE, 3, is_lossless=True, has_logprobs=True)


def text_of(ids: list[int]) -> str:
    return str(TOKENIZER.decode(ids, skip_special_tokens=True))


@dataclass
class _Live:
    job: Job
    ids: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    num_shown: int = 0


@dataclass
class FakeEngine:
    """Writes prompt[0], prompt[1], ... of each job in a circle, two tokens in every other step."""

    info: BackendInfo = INFO
    step_seconds: float = 0.0
    failing_steps: int = 0  # that many of the next steps raise
    error: Failure | None = None  # ends the next job
    refusal: str | None = None  # start() refuses with it

    def __post_init__(self) -> None:
        self.live: dict[Job, _Live] = {}
        self.started: list[Job] = []
        self.cancelled: list[Job] = []
        self.num_resets = 0
        self.num_steps = 0
        self.blocked = threading.Event()  # steps wait while it is not set
        self.blocked.set()

    @property
    def num_live(self) -> int:
        return len(self.live)

    def start(self, job: Job) -> None:
        assert len(self.live) < self.info.num_rows
        if self.refusal is not None:
            raise UserError(self.refusal)
        self.started.append(job)
        self.live[job] = _Live(job)

    def step(self) -> list[Progress]:
        self.blocked.wait(20)
        time.sleep(self.step_seconds)
        self.num_steps += 1
        if self.failing_steps:
            self.failing_steps -= 1
            raise RuntimeError(CRASH)
        progress = [self._step_of(live) for live in self.live.values()]
        for item in progress:
            if item.ending is not None or item.failure is not None:
                del self.live[item.job]
        return progress

    def cancel(self, job: Job) -> None:
        self.cancelled.append(job)
        self.live.pop(job, None)

    def reset(self) -> None:
        self.num_resets += 1
        self.live.clear()

    def seconds(self) -> dict[str, float]:
        return {"draft": self.num_steps * 0.001, "verify": self.num_steps * 0.002}

    def num_nodes(self) -> int:
        return 3

    def _step_of(self, live: _Live) -> Progress:
        job = live.job
        if self.error is not None:
            failure, self.error = self.error, None
            return Progress(job, failure=failure)
        num = min(1 + len(live.accepted) % 2, job.max_tokens - len(live.ids))
        circle = itertools.islice(itertools.cycle(job.prompt), len(live.ids), len(live.ids) + num)
        new = list(circle)
        is_first = not live.ids
        root = live.ids[-1] if live.ids else job.prompt[-1]
        live.ids += new
        live.accepted.append(num)
        text, reason = text_of(live.ids), "length" if len(live.ids) == job.max_tokens else None
        for stop in job.stop:
            if stop in text:
                text, reason = text[: text.index(stop)], "stop"
        progress = Progress(job, new)
        if job.wants_text:
            progress.text, live.num_shown = text[live.num_shown :], len(text)
        if job.num_logprobs is not None:
            progress.logprobs = [_logprob(token, job.num_logprobs) for token in new]
        if job.wants_prompt_logprobs and is_first:
            progress.prompt_logprobs = [None, *(_logprob(token, job.num_logprobs or 0) for token in job.prompt[1:])]
        if job.is_watched:
            progress.view = _view(root, new)
        if reason is not None:
            nodes = [3] * len(live.accepted)
            progress.ending = Ending(reason, text, list(live.ids), list(live.accepted), nodes, True)
        return progress


def _logprob(token: int, num: int) -> TokenLogprob:
    top = [((token + i) % VOCAB_SIZE, -0.1 * (i + 1)) for i in range(num)]
    return TokenLogprob(token, -0.1, top)


def _view(root: int, new: list[int]) -> StepView:
    """The root, the accepted tokens under each other, and one rejected sibling of the first."""
    nodes = [StepNode(root, -1, 0, 0, 1.0, True)]
    for depth, token in enumerate(new[:-1], start=1):
        nodes.append(StepNode(token, depth - 1, depth, 0, 0.5, True))
    nodes.append(StepNode((new[0] + 1) % VOCAB_SIZE, 0, 1, 1, 0.25, False))
    return StepView(nodes, Bonus(new[-1], len(new) - 1, 0.5), {"draft": 1.0, "verify": 2.0})
