"""Settings of regeneration: how the base writes its own training text."""

from dataclasses import dataclass


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
    max_turns: int = 4
    url: str | None = None
    model: str | None = None
    seed: int = 0
    output: str = "data/regenerated"
