"""Settings that several scripts share: how to decode and how answers are written."""

from dataclasses import dataclass, field, fields

from euryale.base.config import BaseConfig, base_of_checkpoint
from euryale.decoding.accept import AcceptConfig
from euryale.decoding.drafters.build import DrafterConfig
from euryale.decoding.grammar import check_syntax
from euryale.decoding.sampling import Sampling, SamplingConfig
from euryale.decoding.tree.choose import TreeConfig
from euryale.errors import UserError, check_least
from euryale.system.paths import user_path


@dataclass
class EngineConfig:
    """Settings that make an engine."""

    checkpoint: str | None = "last"
    base: BaseConfig = field(default_factory=base_of_checkpoint)
    drafter: DrafterConfig = field(default_factory=DrafterConfig)
    tree: TreeConfig = field(default_factory=TreeConfig)
    accept: AcceptConfig = field(default_factory=AcceptConfig)
    temperature: float = SamplingConfig.temperature  # that the tree is chosen for
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
        Sampling(self.temperature)


@dataclass
class AnswerConfig(SamplingConfig, EngineConfig):
    """Settings of the scripts that write answers: an engine and the knobs."""

    max_new_tokens: int = 128
    seed: int = 0

    def check(self) -> None:
        super().check()
        check_syntax(self.sampling())
        check_least(1, max_new_tokens=self.max_new_tokens)
        check_least(0, seed=self.seed)

    def sampling(self) -> Sampling:
        """Raises UserError for numbers out of range."""
        values = {knob.name: getattr(self, knob.name) for knob in fields(Sampling)}
        try:
            values["logit_bias"] = dict(self.logit_bias)
        except (TypeError, ValueError) as error:
            raise UserError(f"logit_bias must be pairs, [[id, number], ...]; got {self.logit_bias}.") from error
        if self.json_schema is not None:
            values["json_schema"] = _read_schema(self.json_schema)
        return Sampling(**values)


def _read_schema(file: object) -> str:
    if not isinstance(file, str):
        raise UserError(f"json_schema must be the name of a file that holds a JSON schema; got {file!r:.80}.")
    try:
        return user_path(file, "json_schema").read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"json_schema={file} cannot be read ({type(error).__name__}). Give a file that holds a JSON schema."
        ) from error
