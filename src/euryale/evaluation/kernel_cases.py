"""Inputs of every kernel at the sizes of a decoding step, and the bytes that such a call cannot do without.

Bytes are those of inputs read once and outputs written once: divided by the copy bandwidth they are the least time.

Letters as in kernels/reference.py.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from euryale.evaluation.config import KernelShapes
from euryale.kernels import reference
from euryale.kernels.nf4_weight import NESTED_BLOCK, NF4, Nf4Weight


class Case(NamedTuple):
    """One call of a kernel."""

    kernel: str
    sizes: dict[str, object]  # what the registry asks about
    make: Callable[[], tuple[object, ...]]  # its arguments; the same numbers every time, in new memory
    num_bytes: int
    work_bytes: int = 0  # what the specification takes on its way, beside arguments and results, where that is much


def cases(
    shapes: KernelShapes, num_nodes: int, dtype: torch.dtype, device: torch.device, kernels: list[str]
) -> list[Case]:
    """The cases of these kernels for one step of a tree."""
    made = _Maker(shapes, num_nodes, dtype, device)
    return [getattr(made, kernel)() for kernel in kernels]


class _Maker:
    """A method for each kernel of the registry."""

    def __init__(self, shapes: KernelShapes, num_nodes: int, dtype: torch.dtype, device: torch.device) -> None:
        self.s, self.N, self.dtype, self.device = shapes, num_nodes, dtype, device
        self.M = shapes.batch * num_nodes
        self.width = dtype.itemsize

    def generator(self, seed: int) -> torch.Generator | None:
        """None on torch's meta device, where nothing is drawn."""
        return None if self.device.type == "meta" else torch.Generator(self.device).manual_seed(seed)

    def random(self, *shape: int) -> Tensor:
        generator = self.generator(len(shape) + sum(shape))
        return torch.randn(shape, generator=generator, device=self.device, dtype=torch.float32).to(self.dtype)

    def random_bytes(self, num: int) -> Tensor:
        generator = self.generator(num)
        return torch.randint(256, (num,), generator=generator, device=self.device, dtype=torch.uint8)

    def lengths(self) -> Tensor:
        return torch.full((self.s.batch,), self.s.context, dtype=torch.int32, device=self.device)

    def ancestors(self) -> Tensor:
        """Every node below the middle of the nodes before it: depths up to log2 of their number."""
        seen = torch.eye(self.N, dtype=torch.bool)
        for node in range(1, self.N):
            seen[node] |= seen[(node - 1) // 2]
        return seen[None]

    def tree_attention(self) -> Case:
        s, N = self.s, self.N
        kv = (s.batch, s.kv_heads, s.context + N, s.head_size)

        def make() -> tuple[object, ...]:
            words = reference.pack_ancestors(self.ancestors()).to(self.device)
            q = self.random(s.batch, N, s.heads, s.head_size)
            return q, self.random(*kv), self.random(*kv), self.lengths(), words, s.head_size**-0.5

        num_bytes = 2 * (self.M * s.heads + s.batch * s.kv_heads * (s.context + N)) * s.head_size * self.width
        sizes = dict(dtype=self.dtype, head_size=s.head_size, num_nodes=N, group_size=s.heads // s.kv_heads)
        scores = s.batch * s.heads * N * kv[2]
        keys_and_values = 2 * s.batch * s.kv_heads * kv[2] * s.head_size
        return Case("tree_attention", sizes, make, num_bytes, 8 * keys_and_values + 12 * scores)  # in float32

    def nf4_linear(self) -> Case:
        """The fused gate_up projection, the largest matrix of a layer."""
        num_outputs, num_inputs = 2 * self.s.inner, self.s.hidden
        blocks = num_outputs * num_inputs // 64
        nested_blocks = -(-blocks // NESTED_BLOCK)

        def make() -> tuple[object, ...]:
            weight = Nf4Weight(
                packed=self.random_bytes(num_outputs * num_inputs // 2),
                codebook=torch.tensor(NF4, device=self.device),
                absmax=self.random_bytes(blocks),
                nested_absmax=self.random(nested_blocks).float().abs(),
                nested_codebook=torch.linspace(-1, 1, 256, device=self.device),
                offset=torch.full((1,), 0.02, device=self.device),
                num_outputs=num_outputs,
                num_inputs=num_inputs,
                block_size=64,
            )
            return self.random(self.M, num_inputs), weight

        num_bytes = num_outputs * num_inputs // 2 + blocks + 4 * nested_blocks
        num_bytes += self.M * (num_inputs + num_outputs) * self.width
        sizes = dict(dtype=self.dtype, num_rows=self.M, num_outputs=num_outputs, num_inputs=num_inputs, block_size=64)
        work_bytes = 19 * num_outputs * num_inputs  # measured: the codes of all weights as indices, and weights
        return Case("nf4_linear", sizes, make, num_bytes, work_bytes)

    def path(self) -> list[int]:
        return [node for node in (0, 2, 6, 14) if node < self.N]

    def walk(self) -> reference.Walk:
        """A path of four nodes (fewer where the tree is smaller) that has to be moved."""
        path = self.path()
        return reference.Walk(
            torch.tensor(path, dtype=torch.int32, device=self.device).repeat(self.s.batch, 1),
            self.lengths(),
            torch.full((self.s.batch,), len(path), dtype=torch.int32, device=self.device),
        )

    def accept_walk(self) -> Case:
        B, N = self.s.batch, self.N
        seen = self.ancestors()
        longest = int(seen.sum(-1).max())

        def make() -> tuple[object, ...]:
            parents = torch.tensor([[max(0, (n - 1) // 2) for n in range(N)]], dtype=torch.int32, device=self.device)
            tokens = torch.arange(B * N, device=self.device).view(B, N) % 7
            answers = reference.Answers(
                self.lengths(), tokens[:, 0].clone(), tokens[:, 0].clone(),
                torch.zeros(B, 64, dtype=torch.int64, device=self.device),
                torch.zeros(B, dtype=torch.int32, device=self.device),
                torch.full((B,), 2**30, dtype=torch.int32, device=self.device),
                torch.full((B, 2), -1, device=self.device),
                torch.zeros(B, dtype=torch.bool, device=self.device),
            )  # fmt: skip
            words = reference.pack_ancestors(seen).to(self.device)
            return tokens, (tokens + 1) % 7, parents, words, answers, longest

        return Case("accept_walk", dict(num_nodes=N), make, B * N * 28, B * N * (N + 16))  # whether each sees each

    def kv_commit(self) -> Case:
        s = self.s
        shape = (2 * s.layers, s.batch, s.kv_heads, s.context + self.N, s.head_size)
        moved = sum(node != place for place, node in enumerate(self.path()))
        num_bytes = 2 * moved * 2 * s.layers * s.batch * s.kv_heads * s.head_size * self.width
        return Case("kv_commit", dict(num_nodes=self.N), lambda: (self.random(*shape), self.walk()), num_bytes)

    def kv_write(self) -> Case:
        s, N = self.s, self.N
        cache = (s.batch, s.kv_heads, s.context + N, s.head_size)

        def make() -> tuple[object, ...]:
            angles = torch.arange(s.context + N, device=self.device)[:, None] * torch.rand(
                s.head_size // 2, generator=self.generator(0), device=self.device
            )
            depths = (self.ancestors().sum(-1) - 1).int().to(self.device)
            qkv = self.random(s.batch, N, s.heads + 2 * s.kv_heads, s.head_size)
            caches = (torch.zeros(cache, dtype=self.dtype, device=self.device) for _ in range(2))
            return qkv, angles.cos(), angles.sin(), self.lengths(), depths, *caches

        num_bytes = 2 * self.M * (s.heads + 2 * s.kv_heads) * s.head_size * self.width
        return Case("kv_write", dict(dtype=self.dtype, head_size=s.head_size), make, num_bytes)

    def top_k(self) -> Case:
        """What heads propose at the accepted node: four heads over the vocabulary."""
        rows = 4 * self.s.batch
        num_bytes = rows * self.s.vocab * self.width
        return Case("top_k", dict(num=10), lambda: (self.random(rows, self.s.vocab), 10), num_bytes)

    def draw(self) -> Case:
        def make() -> tuple[object, ...]:
            rows = torch.arange(self.M, device=self.device)
            scores = self.random(self.M, self.s.vocab)
            return scores, torch.full((self.M,), 0.8, device=self.device), rows, rows.int()

        numbers = self.M * self.s.vocab
        return Case("draw", dict(dtype=self.dtype), make, numbers * self.width, 32 * numbers)  # measured: of its noise

    def rms_norm(self) -> Case:
        C = self.s.hidden

        def make() -> tuple[object, ...]:
            return self.random(self.M, C), self.random(C), 1e-5, self.random(self.M, C)

        return Case("rms_norm", dict(dtype=self.dtype, width=C), make, 4 * self.M * C * self.width)

    def swiglu(self) -> Case:
        def make() -> tuple[object, ...]:
            return (self.random(self.M, 2 * self.s.inner),)

        return Case("swiglu", dict(dtype=self.dtype), make, 3 * self.M * self.s.inner * self.width)
