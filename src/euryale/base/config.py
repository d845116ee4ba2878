"""Settings of the base: which language model, and in which numbers."""

import os
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
    backend: str = "auto"
    nf4_runtime: str = "auto"
    cuda_graphs: bool = True
    merge_adapter: bool = False
    tensor_parallel: int = 1

    def __post_init__(self) -> None:
        """A Path and a torch.device, which callers of Python have at hand, as the texts that they are."""
        self.path = os.fspath(self.path) if isinstance(self.path, os.PathLike) else self.path
        self.device = str(self.device)


def base_of_checkpoint() -> BaseConfig:
    """The base that a heads checkpoint names, loaded as it was for training (conf/base/checkpoint.yaml)."""
    return BaseConfig(path=None, quantization="auto")
