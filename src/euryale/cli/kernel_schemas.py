"""Settings of the scripts of kernels: infer/list_kernels.py and infer/bench_kernels.py."""

from dataclasses import dataclass, field

from euryale.base.config import DTYPES
from euryale.errors import MOST_REPEATS, MOST_TOKENS, UserError, check_option, check_threads, check_within
from euryale.evaluation.config import KernelShapes


@dataclass
class ListKernelsConfig:
    """infer/list_kernels.py"""

    device: str = "auto"

    def check(self) -> None:
        """Which devices there are shows on the machine."""


@dataclass
class BenchKernelsConfig:
    """infer/bench_kernels.py"""

    kernels: list[str] = field(default_factory=list)
    device: str = "auto"
    dtype: str = "bfloat16"
    nodes: list[int] = field(default_factory=lambda: [1, 16, 64])
    shapes: KernelShapes = field(default_factory=KernelShapes)
    repeats: int = 20
    threads: int = 0
    output: str | None = None

    def check(self) -> None:
        """Raises UserError for sizes out of range."""
        check_within(1, MOST_REPEATS, repeats=self.repeats)
        check_within(1, MOST_TOKENS, "shapes.", **vars(self.shapes))
        check_option("dtype", self.dtype, DTYPES)
        check_threads(self.threads)
        if not self.nodes or not all(1 <= num <= 64 for num in self.nodes):
            raise UserError(f"nodes must be numbers from 1 to 64; got {self.nodes}.")
        if self.shapes.heads % self.shapes.kv_heads:
            raise UserError(
                f"shapes.heads must be a multiple of shapes.kv_heads={self.shapes.kv_heads}; got {self.shapes.heads}."
            )
