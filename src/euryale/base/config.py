"""Settings of the base: which language model, in which numbers, its adapters, and sizes without weights."""

import os
from dataclasses import asdict, dataclass, field

from euryale.errors import MOST_TOKENS, UserError, check_least, check_option, check_within

DTYPES = ("float32", "bfloat16", "float16")  # precision.py
FORWARDS = ("auto", "exact", "plain")
QUANTIZATIONS = ("none", "nf4", "int4")
NF4_RUNTIMES = ("auto", "kernel", "expand", "bnb")
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")  # of the fast forward pass, and of conf/shape
MOST_LAYERS = 4096
ALL = "all"  # of lora.targets: every linear layer
_OPTIONAL = ("head_dim",)  # of a shape: hidden_size / num_heads when it is not given


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

    def check(self) -> None:
        """Raises UserError for a name that does not exist; what fits the base and the device shows as it is loaded."""
        check_option("base.dtype", self.dtype, ("auto", *DTYPES))
        check_option("base.forward", self.forward, FORWARDS)
        check_option("base.nf4_runtime", self.nf4_runtime, NF4_RUNTIMES)
        check_least(1, "base.", tensor_parallel=self.tensor_parallel)
        check_option("base.quantization", self.quantization, ("auto", *QUANTIZATIONS))
        if self.quantization == "int4":
            self._check_int4_alone()

    def _check_int4_alone(self) -> None:
        """Raises UserError for settings that name another forward, or other numbers, than those of int4."""
        for name, value, fit in (
            ("forward", self.forward, ("auto", "exact")),
            ("backend", self.backend, ("auto",)),
            ("tensor_parallel", self.tensor_parallel, (1,)),
            ("dtype", self.dtype, ("auto", "float32", "bfloat16")),
        ):
            if value not in fit:
                raise UserError(
                    f"base.{name} must be {' or '.join(map(str, fit))} with base.quantization=int4, which has a "
                    f"forward of its own; got {value}. Leave one of them out."
                )


def base_of_checkpoint() -> BaseConfig:
    """The base that a heads checkpoint names, loaded as it was for training (conf/base/checkpoint.yaml)."""
    return BaseConfig(path=None, quantization="auto")


@dataclass
class LoraConfig:
    """The adapters; the values in conf/lora are the documented defaults."""

    rank: int = 32
    alpha: float = 16.0
    dropout: float = 0.05
    targets: list[str] = field(default_factory=lambda: [ALL])

    def check(self) -> None:
        """Raises UserError for a value out of range."""
        check_least(1, "lora.", rank=self.rank)
        if not self.alpha > 0:
            raise UserError(f"lora.alpha must be positive; got {self.alpha}. Half of the rank is usual.")
        if not 0 <= self.dropout < 1:
            raise UserError(f"lora.dropout must be from 0 to below 1; got {self.dropout}.")
        if not self.targets:
            raise UserError(f"lora.targets must name linear layers; got []. Use lora.targets=[{ALL}] for all.")


@dataclass
class ShapeConfig:
    """Sizes as conf/shape gives them; all null: those of base.path."""

    family: str | None = None
    vocab_size: int | None = None
    hidden_size: int | None = None
    intermediate_size: int | None = None
    num_layers: int | None = None
    num_heads: int | None = None
    num_kv_heads: int | None = None
    head_dim: int | None = None
    max_length: int | None = None
    tied: bool | None = None

    def check(self) -> None:
        """Raises UserError for sizes that no base of the family has, or that are given in part."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        if not given:
            return
        missing = [name for name in asdict(self) if name not in given and name not in _OPTIONAL]
        if missing:
            raise UserError(
                f"shape.{next(iter(given))} is given and {', '.join(f'shape.{name}' for name in missing)} not: sizes "
                "are given whole, or not at all (then base.path's config.json says them). Choose a shape=... to begin "
                "with."
            )
        check_option("shape.family", self.family, FAMILIES)
        sizes = {name: value for name, value in given.items() if name not in ("family", "tied")}
        check_within(1, MOST_TOKENS, "shape.", **sizes)
        check_within(1, MOST_LAYERS, "shape.", num_layers=self.num_layers)
        assert self.hidden_size and self.num_heads and self.num_kv_heads
        if self.head_dim is None and self.hidden_size % (2 * self.num_heads) or self.num_heads % self.num_kv_heads:
            raise UserError(
                f"shape.hidden_size={self.hidden_size} must be an even multiple of shape.num_heads={self.num_heads} "
                f"(positions turn pairs), and that a multiple of shape.num_kv_heads={self.num_kv_heads}."
            )
        if self.head_dim is not None and self.head_dim % 2:
            raise UserError(f"shape.head_dim must be even (positions turn pairs); got {self.head_dim}.")
