"""Settings of decoding: drafter, tree and accept rule, and what scripts that answer share."""

import math
from dataclasses import dataclass, field, fields

from euryale.base.config import BaseConfig, base_of_checkpoint
from euryale.decoding.grammar_syntax import check_syntax
from euryale.decoding.sampling import Sampling, SamplingConfig
from euryale.errors import MOST_TOKENS, UserError, check_least, check_option, check_threads, check_within
from euryale.system.paths import user_path

DRAFTERS = ("none", "heads", "lookup", "lookahead", "heads+lookup", "eagle", "model")  # drafters/build.py says which
TREES = ("chain", "medusa63", "calibrated", "dynamic")  # tree/choose.py
SIZES = ("fixed", "adaptive")
MOST_NODES = 256
RULES = ("exact", "rejection", "typical")  # accept.py


@dataclass
class DrafterConfig:
    """Which drafter, and its settings."""

    name: str = "heads"
    depth: int = 8
    spare: int = 4
    path: str | None = None
    window: int = 5
    ngram: int = 3
    candidates: int = 5

    def check(self) -> None:
        """Raises UserError for an unknown name or a number out of range."""
        check_option("drafter", self.name, DRAFTERS)
        if not 1 <= self.depth <= 64:
            raise UserError(
                f"drafter.depth must be from 1 to 64 tokens; got {self.depth}. {DrafterConfig.depth} is usual."
            )
        if not 1 <= self.spare <= 64:
            raise UserError(
                f"drafter.spare must be from 1 to 64 nodes; got {self.spare}. {DrafterConfig.spare} is usual."
            )
        for name, value, least, usual in (
            ("window", self.window, 1, DrafterConfig.window),
            ("ngram", self.ngram, 2, DrafterConfig.ngram),
            ("candidates", self.candidates, 1, DrafterConfig.candidates),
        ):
            if not least <= value <= 64:
                raise UserError(f"drafter.{name} must be from {least} to 64; got {value}. {usual} is usual.")
        if self.name == "lookahead" and self.num_nodes > MOST_NODES:
            raise UserError(
                f"drafter.window={self.window}, ngram={self.ngram} and candidates={self.candidates} need steps of "
                f"{self.num_nodes} nodes, and {MOST_NODES} is the most. Make one of them smaller."
            )
        if self.path is not None and self.name != "model":
            raise UserError(
                f"drafter.path={self.path} names a model, and drafter={self.name} uses none. Use drafter=model with it."
            )

    @property
    def needs_heads(self) -> bool:
        return self.name in ("heads", "heads+lookup", "eagle")

    @property
    def num_nodes(self) -> int:
        """Of a step of drafter=lookahead, at most."""
        return most_nodes(self.window, self.ngram, self.candidates)


def most_nodes(window: int, ngram: int, candidates: int) -> int:
    """Nodes of a lookahead step where no two paths share one: the root, the window, and what follows the root in
    n-grams."""
    return 1 + (window - 1) + window * (ngram - 2) + candidates * (ngram - 1)


@dataclass
class TreeConfig:
    """Which tree, and its size."""

    name: str = "calibrated"
    num_nodes: int | None = None
    max_depth: int | None = None
    size: str = "fixed"

    def check(self) -> None:
        """Raises UserError for an unknown name or a number out of range."""
        check_option("tree", self.name, TREES)
        check_option("tree.size", self.size, SIZES)
        if self.size == "adaptive" and self.name in ("chain", "medusa63"):
            raise UserError(f"tree={self.name} has one size. tree.size=adaptive is for tree=calibrated and dynamic.")
        if self.num_nodes is not None and self.name in ("chain", "medusa63"):
            raise UserError(f"tree={self.name} has its own number of nodes. Leave tree.num_nodes out, or use another.")
        if self.num_nodes is not None and not 1 <= self.num_nodes <= MOST_NODES:
            raise UserError(f"tree.num_nodes must be from 1 to {MOST_NODES}; got {self.num_nodes}.")
        if self.max_depth is not None and self.max_depth < 1:
            raise UserError(f"tree.max_depth must be at least 1; got {self.max_depth}. Without drafts: drafter=none.")


@dataclass
class AcceptConfig:
    """The rule by which drafted tokens are accepted. Raises UserError in `check`."""

    name: str = "exact"
    coupled: bool = True  # candidates are ranked with the noise that the base draws with
    threshold: float = 0.09  # of `typical`: what is likelier is always accepted ...
    alpha: float = 0.3  # ... and what is likelier than this times exp(-entropy)

    @staticmethod
    def of(rule: "AcceptConfig | str") -> "AcceptConfig":
        """A rule by its name, with the values of conf/accept."""
        if isinstance(rule, AcceptConfig):
            return rule
        return AcceptConfig(rule, coupled=rule == "exact")

    def check(self) -> None:
        check_option("accept", self.name, RULES)
        if self.name == "rejection" and self.coupled:
            raise UserError(
                "accept.coupled=true with accept=rejection: its candidates are drawn with noise of their own, or the "
                "text would be biased. Leave it false."
            )
        if not 0.0 < self.threshold <= 1.0:
            raise UserError(f"accept.threshold must be above 0 and at most 1; got {self.threshold}.")
        if not 0.0 < self.alpha < math.inf:
            raise UserError(f"accept.alpha must be positive; got {self.alpha}.")


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
        self.base.check()
        self.drafter.check()
        self.tree.check()
        self.accept.check()
        if self.drafter.name == "model" and self.drafter.path is None:
            raise UserError(
                "drafter=model needs a smaller model with the same tokenizer. Give drafter.path=FOLDER_OR_HUB_ID."
            )
        Sampling(self.temperature)
        check_threads(self.threads)


@dataclass
class AnswerConfig(SamplingConfig, EngineConfig):
    """Settings of the scripts that write answers: an engine and the knobs."""

    max_new_tokens: int = 128
    seed: int = 0

    def check(self) -> None:
        super().check()
        check_syntax(self.sampling())
        check_within(1, MOST_TOKENS, max_new_tokens=self.max_new_tokens)
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
