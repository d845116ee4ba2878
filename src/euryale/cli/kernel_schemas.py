"""Settings of the scripts of kernels: infer/list_kernels.py and infer/bench_kernels.py."""

from dataclasses import dataclass, field

from euryale.errors import UserError, check_least
from euryale.evaluation.config import KernelShapes


@dataclass
class ListKernelsConfig:
    """infer/list_kernels.py"""

    device: str = "auto"


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
        check_least(1, repeats=self.repeats, **{f"shapes.{name}": size for name, size in vars(self.shapes).items()})
        if not self.nodes or not all(1 <= num <= 64 for num in self.nodes):
            raise UserError(f"nodes must be numbers from 1 to 64; got {self.nodes}.")
        if self.shapes.heads % self.shapes.kv_heads:
            raise UserError(
                f"shapes.heads must be a multiple of shapes.kv_heads={self.shapes.kv_heads}; got {self.shapes.heads}."
            )
