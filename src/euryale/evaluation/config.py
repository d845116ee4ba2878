"""Settings of calibration: what is counted and what is timed."""

from dataclasses import dataclass, field


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
