"""Sampling settings of one answer: the ten knobs of the API, the command line and YAML.

Logits are first processed (logits_processors.py: bias, penalties, bans), then divided by the temperature, then filtered
by top-k, top-p and min-p (sampling_batch.py), in the order and the meaning of transformers' `generate`; the token is
the argmax of the filtered scores plus keyed Gumbel noise. Temperature 0 is the argmax of the processed logits.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, TypedDict

from euryale.decoding.numbers import is_id, real_number, shown, to_list, token_ids, whole_number
from euryale.errors import UserError

Banned = Sequence[int | Sequence[int]]

# So far that products and quotients of all settings stay finite in float32 (3.4e38): what overflows is not a choice.
LEAST_TEMPERATURE = 1e-5  # the noise is 20 at most: below, it could turn a lead of 0.0002 in logits. vLLM's bound too
MOST_TEMPERATURE = 1e6
MOST_PENALTY = 1e6
MOST_BIAS = 1e20


@dataclass(frozen=True)
class Sampling:
    """Everything that decides which token follows a text. The defaults are greedy decoding of the logits as they are.

    Numbers may be numpy's. Raises UserError for what is not a number, and for numbers out of range.
    """

    temperature: float = 0.0  # 0, and anything below LEAST_TEMPERATURE: greedy, without randomness
    top_p: float = 1.0  # sample among the likeliest tokens that together hold this share
    top_k: int = 0  # sample among this many likeliest tokens; 0: all
    min_p: float = 0.0  # sample among tokens at least this share as likely as the likeliest
    repetition_penalty: float = 1.0  # logits of tokens in the text, prompt included: over it above 0, times it below
    presence_penalty: float = 0.0  # taken from the logit of every token that the answer holds
    frequency_penalty: float = 0.0  # the same, once for each time that the answer holds it
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # token id -> what is added to its logit
    banned_tokens: Banned = ()  # ids, or sequences of ids, that are never written
    # Nothing but the context ends the answer before it has so many tokens: end and stop ids are banned, stop strings
    # passed over.
    min_new_tokens: int = 0

    def __post_init__(self) -> None:
        temperature = _in_range("temperature", self.temperature, 0.0, MOST_TEMPERATURE, "0 is greedy")
        values: dict[str, object] = {
            "temperature": temperature if temperature >= LEAST_TEMPERATURE else 0.0,
            "top_p": _in_range("top_p", self.top_p, 0.0, 1.0, "1 keeps all tokens", is_open=True),
            "top_k": whole_number("top_k", self.top_k, least=0),
            "min_p": _in_range("min_p", self.min_p, 0.0, 1.0, "0 is off"),
            "repetition_penalty": _in_range(
                "repetition_penalty", self.repetition_penalty, 1 / MOST_PENALTY, MOST_PENALTY, "1 changes nothing"
            ),
            "presence_penalty": _in_range("presence_penalty", self.presence_penalty, -2.0, 2.0, "0 is off"),
            "frequency_penalty": _in_range("frequency_penalty", self.frequency_penalty, -2.0, 2.0, "0 is off"),
            "logit_bias": _biases(self.logit_bias),
            "banned_tokens": _bans(self.banned_tokens),
            "min_new_tokens": whole_number("min_new_tokens", self.min_new_tokens, least=0),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

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
        """Whether bias, penalties, bans or a least length change the logits before anything is drawn."""
        return self != Sampling(self.temperature, self.top_p, self.top_k, self.min_p)

    @property
    def is_known_to_transformers(self) -> bool:
        """Whether transformers' `generate` can be told all of it."""
        return not self.presence_penalty and not self.frequency_penalty

    def keywords(self) -> dict[str, Any]:
        """What differs from the defaults, as keyword arguments of `Sampling` and of `Engine.generate`."""
        plain = Sampling()
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != getattr(plain, f.name)}


class MoreSampling(TypedDict, total=False):
    """The keyword arguments of `Engine.generate` except temperature and top_p; see Sampling."""

    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    banned_tokens: Banned
    min_new_tokens: int


class AnySampling(MoreSampling, total=False):
    """All keyword arguments of Sampling."""

    temperature: float
    top_p: float


def _in_range(name: str, value: object, least: float, most: float, neutral: str, is_open: bool = False) -> float:
    """A number between the two, the first excluded where the range is open. Raises UserError for anything else."""
    number = real_number(name, value)
    if not least <= number <= most or (is_open and number == least):
        words = f"above {least:g} and at most {most:g}" if is_open else f"from {least:g} to {most:g}"
        raise UserError(f"{name} must be {words}; got {number:g}. {neutral[0].upper()}{neutral[1:]}.")
    return number


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
