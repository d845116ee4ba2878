"""One prompt on its way to an answer: what was asked, what was written so far, and the answer at its end."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from euryale.base.base import Base
from euryale.decoding.detokenizer import Detokenizer
from euryale.decoding.grammar import GrammarState, grammar_of
from euryale.decoding.numbers import flag, one_seed, shown, token_ids, whole_number
from euryale.decoding.prompt import Prompt, encode
from euryale.decoding.record import Record, TokenLogprob
from euryale.decoding.sampling import Sampling
from euryale.decoding.stop_strings import check_stop, special_ids
from euryale.errors import UserError


@dataclass
class Generation:
    """One answer."""

    text: str
    ids: list[int]  # the end-of-text id included when it was written
    num_steps: int  # forwards of the base after the prompt's
    accepted: list[int]  # tokens gained by each step; their sum is len(ids)
    finish_reason: (
        str  # "eos" | "stop" (a string, an id, a grammar's end) | "length" | "context" | "cancelled" | "error"
    )
    seconds: float  # wall clock from its submission to its end, prompt included
    is_lossless: bool = True  # of the rule: False where `typical` may write what the base alone would not
    is_exact: bool = False  # of the numbers too: the ids of plain decoding, bit by bit, as proven on this machine
    nodes: list[int] = field(default_factory=list)  # nodes that each step verified, the root included; 1: no drafts
    seed: int = 0  # that it was sampled with
    logprobs: list[TokenLogprob] = field(default_factory=list)  # of each id, where they were asked for

    @property
    def undrafted_share(self) -> float:
        """Share of the steps without drafts: none were found, or an adaptive tree fell back to plain decoding."""
        return sum(n == 1 for n in self.nodes) / max(len(self.nodes), 1)

    @property
    def tau(self) -> float:
        """Mean tokens a step, the bonus token included."""
        return len(self.ids) / self.num_steps if self.num_steps else 0.0


class StopConditions(NamedTuple):
    """What ends an answer, apart from its length."""

    strings: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    eos_ids: tuple[int, ...] = ()

    @staticmethod
    def of(
        base: Base, stop: str | Sequence[str] | None, stop_ids: int | Sequence[int] | None, ignore_eos: bool
    ) -> "StopConditions":
        """A stop string that is a special token stops by its id. Raises UserError for what can never match."""
        strings = check_stop(stop)
        ids = token_ids("stop_ids", stop_ids)
        wrong = [token for token in ids if not 0 <= token < base.vocab_size]
        if wrong:
            raise UserError(
                f"stop_ids must name tokens of {base.path}, 0 to {base.vocab_size - 1}; got {wrong[0]}. Leave it out: "
                "it can never be written."
            )
        special = [token for token in special_ids(base.tokenizer, strings) if token < base.vocab_size]
        return StopConditions(strings, (*ids, *special), () if flag("ignore_eos", ignore_eos) else base.eos_ids)

    @property
    def ids(self) -> tuple[int, ...]:
        return (*self.eos_ids, *self.stop_ids)


class Times(NamedTuple):
    """time.perf_counter() at the events of a request; None: it has not happened."""

    submitted: float
    admitted: float | None = None  # its prompt was read
    first_token: float | None = None
    ended: float | None = None


@dataclass(eq=False)
class Request:
    """A prompt, how it is to be answered, and its answer so far. `generation` is the whole answer once it has ended."""

    prompt: list[int]
    tokenizer: PreTrainedTokenizerBase
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    stop: StopConditions = StopConditions()
    max_ids: int = 128  # the answer ends at this length at the latest
    reason_at_max: str = "length"  # or "context": the base can hold no more
    has_drafts: bool = True  # False: plain decoding, whatever the rows alongside do
    is_lossless: bool = True
    is_exact: bool = False
    record: Record | None = None
    grammar: GrammarState | None = None  # that its sampling asks for
    num_cached: int = 0  # prompt tokens that were known from earlier texts (prefix_cache.py)
    ids: list[int] = field(default_factory=list)  # of the answer so far
    accepted: list[int] = field(default_factory=list)  # tokens gained by each step
    nodes: list[int] = field(default_factory=list)  # nodes that each step verified
    finish_reason: str | None = None
    error: str | None = None  # why it ended with finish_reason "error"
    generation: Generation | None = None
    times: Times = field(default_factory=lambda: Times(time.perf_counter()))

    def __post_init__(self) -> None:
        # Made here where the text decides when the answer ends, else when text is first asked for.
        self._detokenizer = self._new_detokenizer() if self.stop.strings else None

    @staticmethod
    def of(
        base: Base, prompt: Prompt, max_new_tokens: int, stop: StopConditions, sampling: Sampling, seed: int | None
    ) -> "Request":
        """seed: None draws one. Raises UserError for a prompt that leaves no room in the context, for numbers out of
        range, and for a grammar that cannot be followed (grammar_of)."""
        max_new_tokens = whole_number("max_new_tokens", max_new_tokens, least=1)
        seed = one_seed(seed)
        ids = encode(base, prompt)
        room = base.max_length - len(ids)
        if room < 1:
            raise UserError(
                f"the prompt has {len(ids)} tokens and the context of {base.path} ends at {base.max_length}. "
                "Shorten the prompt."
            )
        sampling.check_tokens(base.vocab_size, max_new_tokens)
        reason_at_max = "length" if max_new_tokens <= room else "context"
        grammar = grammar_of(base, sampling, stop.ids)
        max_ids = min(max_new_tokens, room)
        return Request(ids, base.tokenizer, sampling, seed, stop, max_ids, reason_at_max, grammar=grammar)

    @property
    def num_tokens(self) -> int:
        """Of prompt and answer together, at most."""
        return len(self.prompt) + self.max_ids

    def admit(self) -> None:
        """Its prompt was read: it is live from now on."""
        self.times = self.times._replace(admitted=time.perf_counter())

    def take(self, tokens: Sequence[int], num_nodes: int) -> None:
        """Adds one step's tokens up to the first that ends the answer; an end inside a path cuts the path."""
        if not self.ids:
            self.times = self.times._replace(first_token=time.perf_counter())
        start = len(self.ids)
        for token in tokens:
            self.ids.append(token)
            self.finish_reason = self._ending(token)
            if self.finish_reason:
                break
        self.accepted.append(len(self.ids) - start)
        self.nodes.append(num_nodes)
        if self.record is not None:
            self.record.cut(len(self.ids), self.accepted[-1])

    def _ending(self, token: int) -> str | None:
        """Why the answer ends with this token, the last of its ids; None: it goes on."""
        if token in self.stop.eos_ids:
            return "eos"
        if token in self.stop.stop_ids or (self._detokenizer is not None and self._detokenizer.add(token)):
            return "stop"
        if self.grammar is not None:
            if self.grammar.accept(token):
                return "stop"
            if self.grammar.error is not None:
                self.error = _too_complex(self.grammar.error)
                return "error"
        return self.reason_at_max if len(self.ids) == self.max_ids else None

    def new_text(self) -> str:
        """The text written since the last call; a piece is never taken back and never half a character."""
        return self._text().new_text(is_last=self.generation is not None)

    def end(self, reason: str | None = None) -> None:
        """Makes the Generation. Its text comes from the same detokenizer as the pieces, so both agree."""
        self.finish_reason = reason or self.finish_reason
        assert self.finish_reason is not None
        ended = time.perf_counter()
        self.times = self.times._replace(ended=ended)
        detokenizer = self._text()
        detokenizer.close()
        # A stop string may come to light only here, when half a character after it was held back.
        reason = "stop" if detokenizer.is_stopped else self.finish_reason
        seconds, num_steps = ended - self.times.submitted, len(self.accepted)
        self.generation = Generation(
            detokenizer.text,
            self.ids,
            num_steps,
            self.accepted,
            reason,
            seconds,
            self.is_lossless,
            self.is_exact,
            self.nodes,
            self.seed,
        )
        if self.record is not None:
            self.generation.logprobs = self.record.logprobs

    @property
    def text_ids(self) -> list[int]:
        """The ids whose text is the answer's: an id that ended it is not shown."""
        has_end = self.finish_reason in ("eos", "stop") and self.ids[-1] in self.stop.ids
        return self.ids[:-1] if has_end else self.ids

    def _text(self) -> Detokenizer:
        """Made when text is first asked for; from then on `take` feeds it."""
        if self._detokenizer is None:
            self._detokenizer = self._new_detokenizer()
            for token in self.text_ids:
                self._detokenizer.add(token)
        return self._detokenizer

    def _new_detokenizer(self) -> Detokenizer:
        return Detokenizer(self.tokenizer, self.stop.strings, self.prompt, self.sampling.min_new_tokens)


def _too_complex(reason: str) -> str:
    return f"no token is left to write: json_schema or regex is too complex to follow ({reason}). Make it simpler."


def has_drafts(drafter: str | None) -> bool:
    """Whether a request that names this drafter is drafted for. Raises UserError for a name that it cannot choose."""
    if drafter not in (None, "none"):
        raise UserError(
            f'drafter of a request must be "none", or None for that of the engine; got {shown(drafter)}. Make another '
            "engine for another drafter."
        )
    return drafter is None
