"""The settings that several scripts share: how to decode, how to write training text, how to calibrate."""

from dataclasses import dataclass, field

from euryale.model.base import BaseConfig


@dataclass
class DrafterConfig:
    """Who proposes."""

    name: str = "heads"


@dataclass
class TreeConfig:
    """What is proposed."""

    name: str = "calibrated"
    num_nodes: int | None = None


@dataclass
class AcceptConfig:
    """The rule by which proposals are taken."""

    name: str = "exact"


@dataclass
class DecodeConfig:
    """What every infer script takes."""

    checkpoint: str = "last"
    base: BaseConfig = field(default_factory=BaseConfig)
    drafter: DrafterConfig = field(default_factory=DrafterConfig)
    tree: TreeConfig = field(default_factory=TreeConfig)
    accept: AcceptConfig = field(default_factory=AcceptConfig)
    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    threads: int = 0


@dataclass
class RegenerateConfig:
    """How the base writes its own training text."""

    num_prompts: int = 2048
    prompt_tokens: int = 48
    new_tokens: int = 128
    greedy_share: float = 0.3
    temperature: float = 0.8
    batch_size: int = 128
    shard_rows: int = 256
    seed: int = 0
    output: str = "data/regenerated"


@dataclass
class CalibrateConfig:
    """What calibration counts and times."""

    num_prompts: int = 32
    prompt_tokens: int = 48
    new_tokens: int = 128
    temperatures: list[float] = field(default_factory=lambda: [0.0, 0.8])
    max_rank: int = 10
    node_counts: list[int] = field(default_factory=lambda: [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64])
    repeats: int = 15
    context_tokens: int = 128
    batch_size: int = 16
    seed: int = 1
