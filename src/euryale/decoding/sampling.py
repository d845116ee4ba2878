"""Sampling settings of one answer: the knobs of the API, the command line and YAML, named here alone.

Logits are first processed (logits_processors.py: bias, penalties, bans, grammar), then divided by the temperature, then
filtered by top-k, top-p and min-p (sampling_batch.py), in the order and the meaning of transformers' `generate`; the
token is the argmax of the filtered scores plus keyed Gumbel noise. Temperature 0 is the argmax of the processed logits.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, NamedTuple

from euryale.data.rows import encode
from euryale.decoding.numbers import is_id, real_number, shown, to_list, token_ids, whole_number
from euryale.errors import UserError

Banned = Sequence[int | Sequence[int]]

# So far that products and quotients of all settings stay finite in float32 (3.4e38): what overflows is not a choice.
LEAST_TEMPERATURE = 1e-5  # the noise is 20 at most: below, it could turn a lead of 0.0002 in logits. vLLM's bound too
MOST_TEMPERATURE = 1e6
MOST_PENALTY = 1e6
MOST_BIAS = 1e20


class Range(NamedTuple):
    """Numbers that a knob may be."""

    least: float
    most: float
    neutral: str  # which number changes nothing, for messages
    is_open: bool = False  # `least` itself is excluded

    def check(self, name: str, value: object) -> float:
        """Raises UserError for anything else."""
        number = real_number(name, value)
        if not self.least <= number <= self.most or (self.is_open and number == self.least):
            words = "above {:g} and at most {:g}" if self.is_open else "from {:g} to {:g}"
            raise UserError(f"{name} must be {words.format(*self[:2])}; got {number:g}. {self.neutral}.")
        return number


def _real(default: float, least: float, most: float, neutral: str, is_open: bool = False) -> Any:
    return field(default=default, metadata={"range": Range(least, most, neutral, is_open)})


@dataclass
class SamplingConfig:
    """Everything that decides which token follows a text, before it is checked.

    The defaults are greedy decoding of the logits as they are.
    """

    # 0, and anything below LEAST_TEMPERATURE: greedy, without randomness
    temperature: float = _real(0.0, 0.0, MOST_TEMPERATURE, "0 is greedy")
    # sample among the likeliest tokens that together hold this share
    top_p: float = _real(1.0, 0.0, 1.0, "1 keeps all tokens", is_open=True)
    top_k: int = 0  # sample among this many likeliest tokens; 0: all
    # sample among tokens at least this share as likely as the likeliest
    min_p: float = _real(0.0, 0.0, 1.0, "0 is off")
    # logits of tokens in the text, prompt included: over it above 0, times it below
    repetition_penalty: float = _real(1.0, 1 / MOST_PENALTY, MOST_PENALTY, "1 changes nothing")
    # taken from the logit of every token that the answer holds
    presence_penalty: float = _real(0.0, -2.0, 2.0, "0 is off")
    # the same, once for each time that the answer holds it
    frequency_penalty: float = _real(0.0, -2.0, 2.0, "0 is off")
    logit_bias: Any = field(default_factory=list)  # pairs: a command line cannot add keys to a dictionary
    banned_tokens: Any = field(default_factory=list)
    # Nothing but the context ends the answer before it has so many tokens: end and stop ids are banned, stop strings
    # passed over.
    min_new_tokens: int = 0
    # The answer is JSON that fits this schema, or matches this regular expression from its first character to its last.
    # It ends where nothing can follow, whatever min_new_tokens says (grammar.py).
    json_schema: Any = None  # a file: a command line has no mappings
    regex: str | None = None


@dataclass
class Sampling(SamplingConfig):
    """The knobs, checked when they are set; nothing changes them later. Numbers may be numpy's.

    Raises UserError for what is not a number, and for numbers out of range.
    """

    logit_bias: Mapping[int, float] = field(default_factory=dict)  # token id -> what is added to its logit
    banned_tokens: Banned = ()  # ids, or sequences of ids, that are never written
    json_schema: Mapping[str, Any] | str | None = None  # a mapping, or its text; kept as text

    def __post_init__(self) -> None:
        for name, limits in RANGES.items():
            setattr(self, name, limits.check(name, getattr(self, name)))
        if self.temperature < LEAST_TEMPERATURE:
            self.temperature = 0.0
        self.top_k = whole_number("top_k", self.top_k, least=0)
        self.min_new_tokens = whole_number("min_new_tokens", self.min_new_tokens, least=0)
        self.logit_bias = _biases(self.logit_bias)
        self.banned_tokens = _bans(self.banned_tokens)
        self.json_schema = _schema(self.json_schema)
        self.regex = _regex(self.regex, self.json_schema)

    @staticmethod
    def of(**knobs: object) -> "Sampling":
        """Those that a caller names. Raises TypeError for another name, as any Python function."""
        return Sampling(**knobs)  # type: ignore[arg-type]  # checked there, value by value

    def banned_words(self) -> list[tuple[int, ...]]:
        """Every ban as a sequence of ids."""
        return [tuple(word) if isinstance(word, Sequence) else (word,) for word in self.banned_tokens]

    def check_tokens(self, vocab_size: int, max_new_tokens: int) -> None:
        """Raises UserError for ids that the base does not have, and for settings that leave no answer."""
        banned = self.banned_words()
        for name, ids in (("logit_bias", self.logit_bias), ("banned_tokens", [t for word in banned for t in word])):
            wrong = [token for token in ids if not 0 <= token < vocab_size]
            if wrong:
                raise UserError(f"{name} must name tokens of this base, 0 to {vocab_size - 1}; got {wrong[0]}.")
        forbidden = {word[0] for word in banned if len(word) == 1}
        forbidden |= {token for token, bias in self.logit_bias.items() if bias == -math.inf}
        if len(forbidden) >= vocab_size:
            raise UserError(
                f"banned_tokens and a logit_bias of -inf must leave a token to write; they forbid all {vocab_size}."
            )
        if self.min_new_tokens > max_new_tokens:
            raise UserError(
                f"min_new_tokens must be at most max_new_tokens={max_new_tokens}; got {self.min_new_tokens}."
            )

    @cached_property
    def is_processed(self) -> bool:
        """Whether bias, penalties, bans, a least length or a grammar change the logits before anything is drawn."""
        return self != Sampling(self.temperature, self.top_p, self.top_k, self.min_p)

    @property
    def is_known_to_transformers(self) -> bool:
        """Whether transformers' `generate` can be told all of it."""
        has_grammar = self.json_schema is not None or self.regex is not None
        return not self.presence_penalty and not self.frequency_penalty and not has_grammar

    def keywords(self) -> dict[str, Any]:
        """What differs from the defaults, as keyword arguments of `Sampling` and of `Engine.generate`."""
        plain = Sampling()
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != getattr(plain, f.name)}


RANGES: dict[str, Range] = {knob.name: knob.metadata["range"] for knob in fields(SamplingConfig) if knob.metadata}


def _biases(logit_bias: object) -> dict[int, float]:
    """Raises UserError for what is not a mapping of ids to numbers that float32 can add to a logit."""
    if not isinstance(logit_bias, Mapping):
        raise UserError(f"logit_bias must be a mapping of token ids to numbers; got {shown(logit_bias)}.")
    biases = {}
    for token, value in logit_bias.items():
        if not is_id(token):
            raise UserError(f"logit_bias must be a mapping of token ids to numbers; got {shown(token)} as an id.")
        bias = real_number(f"logit_bias of token {token}", value)
        if abs(bias) > MOST_BIAS and bias != -math.inf:
            raise UserError(
                f"logit_bias of token {token} must be from {-MOST_BIAS:g} to {MOST_BIAS:g}, or -inf for a ban; got "
                f"{bias:g}. 100 is enough to force a token."
            )
        biases[int(token)] = bias
    return biases


def _schema(schema: object) -> str | None:
    """As text. Raises UserError for what is not a JSON object; whether it is a schema shows in grammar.py."""
    if schema is None:
        return None
    try:
        text = schema if isinstance(schema, str) else json.dumps(schema, allow_nan=False)
        is_object = isinstance(json.loads(text), dict)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"json_schema must be a mapping, or JSON text of an object; got {shown(schema)}.") from error
    if not is_object:
        raise UserError(f"json_schema must be a mapping, or JSON text of an object; got {shown(schema)}.")
    encode(text, "json_schema")
    return text


def _regex(regex: object, schema: object) -> str | None:
    """Raises UserError for what is not text, and beside a schema."""
    if regex is None:
        return None
    if not isinstance(regex, str) or not regex:
        raise UserError(f"regex must be text of at least one character; got {shown(regex)}. None is off.")
    if schema is not None:
        raise UserError("json_schema and regex must not both be given. Leave one out.")
    encode(regex, "regex")
    return regex


def _bans(banned: object) -> tuple[int | tuple[int, ...], ...]:
    """Raises UserError for what is not a list of ids and of sequences of ids."""
    banned = to_list("banned_tokens", banned)
    if not isinstance(banned, Sequence) or isinstance(banned, (str, bytes)):
        raise UserError(f"banned_tokens must be a list of token ids, or of lists of token ids; got {shown(banned)}.")
    words: list[int | tuple[int, ...]] = []
    for word in banned:
        if is_id(word):
            words.append(int(word))
            continue
        ids = None if isinstance(word, (str, bytes)) or word is None else token_ids("banned_tokens", word)
        if not ids:
            raise UserError(f"banned_tokens must be token ids, or lists of at least one token id; got {shown(word)}.")
        words.append(tuple(ids))
    return tuple(words)
