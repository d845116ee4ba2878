"""What the server asks of an engine, and what it gets back. SchedulerAdapter answers it with a Scheduler.

All of it is plain data, so that the engine may move into a process of its own.
"""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from euryale.decoding.record import Bonus, StepNode, TokenLogprob
from euryale.decoding.sampling import Sampling

FinishReason = Literal["stop", "length", "cancelled"]


class BackendInfo(NamedTuple):
    """What never changes while a server runs."""

    drafter: str  # its name; "none" where there is none
    num_rows: int  # sequences that are decoded at once, at most
    row_tokens: int  # prompt and answer together
    vocab_size: int
    max_depth: int  # drafted tokens that a step can gain at most
    is_lossless: bool  # the accept rule writes what plain decoding would
    has_logprobs: bool


@dataclass(frozen=True, eq=False)
class Job:
    """One sequence to write."""

    prompt: list[int]
    max_tokens: int
    sampling: Sampling
    seed: int
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    wants_text: bool = False  # text while it is written; the whole text comes in the end anyway
    is_watched: bool = False  # its steps are seen
    with_drafter: bool = True
    num_logprobs: int | None = None  # ranked tokens at each position of the answer; 0: the written one alone
    wants_prompt_logprobs: bool = False


class StepView(NamedTuple):
    """One step of a watched job, as record.StepView has it, and where its time went."""

    nodes: list[StepNode]
    bonus: Bonus | None  # None where the answer ended before it
    parts_ms: dict[str, float]


class Ending(NamedTuple):
    """How a job ended, and what it was."""

    finish_reason: FinishReason
    text: str
    ids: list[int]
    accepted: list[int]  # tokens gained by each step
    nodes: list[int]  # nodes verified by each step, the root included
    is_lossless: bool
    num_cached: int = 0  # prompt tokens that were known from earlier texts

    @property
    def shown_reason(self) -> Literal["stop", "length"]:
        """As the HTTP API says it; an answer that was cancelled is told to nobody there."""
        return "stop" if self.finish_reason == "stop" else "length"


class Failure(NamedTuple):
    """Why a job could not be finished."""

    message: str
    is_users: bool  # its settings are at fault, not the server


@dataclass
class Progress:
    """What one step brought one job."""

    job: Job
    ids: list[int] = field(default_factory=list)
    text: str = ""  # where the job wants it
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob | None] | None = None  # once, with the first step; None of the first token
    view: StepView | None = None
    ending: Ending | None = None
    failure: Failure | None = None

    @property
    def is_last(self) -> bool:
        """Whether the job is over, however it ended."""
        return self.ending is not None or self.failure is not None


class Backend(Protocol):
    """Used by the engine thread alone."""

    info: BackendInfo

    @property
    def num_live(self) -> int:
        """Jobs that were started and have not ended."""

    def start(self, job: Job) -> None:
        """Takes a job; there must be a free row. Raises UserError for what cannot be."""

    def step(self) -> list[Progress]:
        """One step of all live jobs; those that ended or failed are gone."""

    def cancel(self, job: Job) -> None:
        """Ends a job without a word; nothing happens when it has ended."""

    def reset(self) -> None:
        """Forgets all live jobs and whatever a failed step left."""

    def seconds(self) -> dict[str, float]:
        """Time of each part of the steps so far."""

    def num_nodes(self) -> int:
        """Nodes of a row's tree in the last step."""
