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

from euryale.errors import UserError

Banned = Sequence[int | Sequence[int]]


@dataclass(frozen=True)
class Sampling:
    """Everything that decides which token follows a text. The defaults are greedy decoding of the logits as they are.

    Raises UserError for numbers out of range.
    """

    temperature: float = 0.0  # 0: greedy, without randomness
    top_p: float = 1.0  # sample among the likeliest tokens that together hold this share
    top_k: int = 0  # sample among this many likeliest tokens; 0: all
    min_p: float = 0.0  # sample among tokens at least this share as likely as the likeliest
    repetition_penalty: float = 1.0  # logits of tokens in the text, prompt included: over it above 0, times it below
    presence_penalty: float = 0.0  # taken from the logit of every token that the answer holds
    frequency_penalty: float = 0.0  # the same, once for each time that the answer holds it
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # token id -> what is added to its logit
    banned_tokens: Banned = ()  # ids, or sequences of ids, that are never written
    min_new_tokens: int = 0  # nothing ends the answer before it has so many tokens

    def __post_init__(self) -> None:
        object.__setattr__(self, "banned_tokens", tuple(self.banned_tokens))  # so that an empty list is the default
        if not 0.0 <= self.temperature < math.inf:
            raise UserError(f"temperature={self.temperature} cannot be. Give 0 for greedy, or a positive number.")
        if not 0.0 < self.top_p <= 1.0:
            raise UserError(f"top_p={self.top_p} cannot be. Give a number above 0 and at most 1.")
        if not _is_whole(self.top_k) or self.top_k < 0:
            raise UserError(f"top_k={self.top_k} cannot be. Give a whole number of tokens, or 0 for all.")
        if not 0.0 <= self.min_p <= 1.0:
            raise UserError(f"min_p={self.min_p} cannot be. Give a number from 0 (off) to 1.")
        if not 0.0 < self.repetition_penalty < math.inf:
            raise UserError(
                f"repetition_penalty={self.repetition_penalty} cannot be. Give a number above 0; 1 changes nothing."
            )
        for name in ("presence_penalty", "frequency_penalty"):
            if not -2.0 <= getattr(self, name) <= 2.0:
                raise UserError(f"{name}={getattr(self, name)} cannot be. Give a number from -2 to 2; 0 is off.")
        if not all(_is_whole(token) and _is_bias(bias) for token, bias in self.logit_bias.items()):
            raise UserError(f"logit_bias={dict(self.logit_bias)} cannot be. Give token ids with a finite number each.")
        if not all(_is_whole(token) for word in self.banned_words() for token in word or (None,)):
            raise UserError(
                f"banned_tokens={list(self.banned_tokens)} cannot be. Give token ids, or lists of token ids."
            )
        if not _is_whole(self.min_new_tokens) or self.min_new_tokens < 0:
            raise UserError(f"min_new_tokens={self.min_new_tokens} cannot be. Give a whole number, or 0 for off.")

    def banned_words(self) -> list[tuple[int, ...]]:
        """Every ban as a sequence of ids."""
        return [tuple(word) if isinstance(word, Sequence) else (word,) for word in self.banned_tokens]

    def check_tokens(self, vocab_size: int, max_new_tokens: int) -> None:
        """Raises UserError for ids that the base does not have, and for settings that leave no answer."""
        banned = self.banned_words()
        for name, ids in (("logit_bias", self.logit_bias), ("banned_tokens", [t for word in banned for t in word])):
            wrong = [token for token in ids if not 0 <= token < vocab_size]
            if wrong:
                raise UserError(f"{name} names token {wrong[0]}, and this base knows 0 to {vocab_size - 1}.")
        if len({word for word in banned if len(word) == 1}) >= vocab_size:
            raise UserError(f"banned_tokens bans all {vocab_size} tokens. Leave at least one.")
        if self.min_new_tokens > max_new_tokens:
            raise UserError(
                f"min_new_tokens={self.min_new_tokens} is more than max_new_tokens={max_new_tokens}. Change one."
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


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_bias(value: object) -> bool:
    """A number that can be added to a logit; -inf is a ban."""
    return isinstance(value, int | float) and value < math.inf
