"""Settings of calibration and of the benchmarks of kernels and of steps, and a bound of the doctor."""

from dataclasses import dataclass, field

FEWEST_TOKENS = 64  # of a part of the answers whose accuracy the doctor tells apart


@dataclass
class CalibrateConfig:
    """What calibration counts and times."""

    num_prompts: int = 32
    breadth_share: float = 0.5
    prompt_tokens: int = 48
    new_tokens: int = 128
    temperatures: list[float] = field(default_factory=lambda: [0.0, 0.8])
    max_rank: int = 10
    node_counts: list[int] = field(default_factory=lambda: [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64])
    repeats: int = 15
    context_tokens: int = 128
    batch_size: int = 16
    seed: int = 1


@dataclass
class KernelShapes:
    """Sizes of the model and cache that kernels are timed at; of Llama-3-8B."""

    batch: int = 1
    context: int = 1024
    heads: int = 32
    kv_heads: int = 8
    head_size: int = 128
    hidden: int = 4096
    inner: int = 14336
    layers: int = 32
    vocab: int = 128256


@dataclass
class StepsConfig:
    """Which steps are timed (step_ways.py), and how often."""

    ways: list[str] = field(default_factory=list)
    nodes: list[int] = field(default_factory=lambda: [1, 8, 16, 32, 64])
    context_tokens: int = 1000
    repeats: int = 7
    generate_tokens: int = 64
