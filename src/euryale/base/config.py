"""Settings of the base: which language model, and in which numbers."""

from dataclasses import dataclass


@dataclass
class BaseConfig:
    """Which language model, and in which numbers."""

    path: str | None = "checkpoints/tiny-base"  # None: the one that a heads checkpoint names
    revision: str | None = None
    dtype: str = "auto"
    quantization: str = "none"
    device: str = "auto"
    forward: str = "auto"
    merge_adapter: bool = False
