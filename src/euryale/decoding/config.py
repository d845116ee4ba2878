"""Settings that several scripts share: how to decode and how answers are written."""

from dataclasses import dataclass, field, fields
from typing import Any

from euryale.base.config import BaseConfig, base_of_checkpoint
from euryale.decoding.accept import AcceptConfig
from euryale.decoding.drafters.build import DrafterConfig
from euryale.decoding.numbers import one_seed
from euryale.decoding.sampling import MoreSampling, Sampling
from euryale.decoding.tree.choose import TreeConfig
from euryale.errors import UserError


@dataclass
class DecodeConfig:
    """Decoding settings of every infer script."""

    checkpoint: str | None = "last"
    base: BaseConfig = field(default_factory=base_of_checkpoint)
    drafter: DrafterConfig = field(default_factory=DrafterConfig)
    tree: TreeConfig = field(default_factory=TreeConfig)
    accept: AcceptConfig = field(default_factory=AcceptConfig)
    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    threads: int = 0
    deterministic: bool = False

    def check(self) -> None:
        """Raises UserError for settings that no checkpoint or base could take, before one is loaded."""
        self.drafter.check()
        self.tree.check()
        self.accept.check()
        if self.drafter.name == "model" and self.drafter.path is None:
            raise UserError(
                "drafter=model needs a smaller model with the same tokenizer. Give drafter.path=FOLDER_OR_HUB_ID."
            )
        check_least(1, max_new_tokens=self.max_new_tokens)
        one_seed(self.seed)
        self.sampling()

    def sampling(self) -> Sampling:
        """Raises UserError for numbers out of range."""
        return Sampling(self.temperature, self.top_p)


@dataclass
class AnswerConfig(DecodeConfig):
    """Settings of the scripts that write answers: everything of Sampling."""

    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: list[Any] = field(default_factory=list)  # pairs: a command line cannot add keys to a dictionary
    banned_tokens: list[Any] = field(default_factory=list)
    min_new_tokens: int = 0

    def sampling(self) -> Sampling:
        """Raises UserError for numbers out of range."""
        values = {item.name: getattr(self, item.name) for item in fields(Sampling)}
        try:
            values["logit_bias"] = dict(self.logit_bias)
        except (TypeError, ValueError) as error:
            raise UserError(f"logit_bias must be pairs, [[id, number], ...]; got {self.logit_bias}.") from error
        return Sampling(**values)

    def more_sampling(self) -> MoreSampling:
        """The settings that differ from the defaults, except temperature and top_p."""
        asked = self.sampling().keywords()
        return MoreSampling(**{k: v for k, v in asked.items() if k in MoreSampling.__annotations__})  # type: ignore[typeddict-item]


def check_least(least: int, **numbers: int | None) -> None:
    """Raises UserError for the first number below `least`; None is not a number."""
    for name, number in numbers.items():
        if number is not None and number < least:
            raise UserError(f"{name} must be at least {least}; got {number}.")
