"""Roofline of a step: bytes over bandwidth and flops over flop rate, both measured here in a moment.

A step reads every weight once and multiplies it with every node of the tree. Keys, values and everything between
the matrices are left out, so the truth lies below this ceiling.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.distributed.tensor import DTensor

from euryale.base.base import Base
from euryale.base.compiled_llama import CompiledLlama
from euryale.decoding.drafters.head_matrices import bytes_of_a_number, draft_dtype
from euryale.decoding.engine import Engine
from euryale.decoding.tree.tree import MOST_PARENTS, DynamicTree, Tree

_MIN_BUFFER, _MAX_BUFFER = 2**20, 2**30  # bytes
_REPEATS = 5


class Ceiling(NamedTuple):
    """What a step has to move and compute, what this machine moves and computes, and what follows."""

    base_bytes: int  # weights read by a step without drafts
    step_bytes: int  # the same and the heads'
    step_flops: int  # of a step over the whole tree, drafting included
    num_nodes: int
    bytes_per_s: float
    flops_per_s: float

    @property
    def ar_tokens_per_s(self) -> float:
        return self.bytes_per_s / self.base_bytes

    @property
    def step_ms(self) -> float:
        """No step over this tree can take less."""
        return 1000 * max(self.step_bytes / self.bytes_per_s, self.step_flops / self.flops_per_s)

    def describe(self) -> str:
        return (
            f"ceiling: without drafts a step reads {self.base_bytes / 1e6:,.1f} MB of weights; at the "
            f"{self.bytes_per_s / 1e9:,.1f} GB/s measured at that size that is "
            f"{1000 / self.ar_tokens_per_s:.3f} ms a token, at most {self.ar_tokens_per_s:,.0f} tokens/s.\n"
            f"With {self.num_nodes} nodes a step reads {self.step_bytes / 1e6:,.1f} MB and computes "
            f"{self.step_flops / 1e9:,.3f} GFLOP (measured: {self.flops_per_s / 1e9:,.0f} GFLOP/s): "
            f"at least {self.step_ms:.3f} ms."
        )

    def as_dict(self) -> dict[str, float]:
        return self._asdict() | {"ar_tokens_per_s": self.ar_tokens_per_s, "step_ms": self.step_ms}


def measure_ceiling(engine: Engine, temperature: float = 0.0) -> Ceiling:
    """Counts the engine's weights and times one read and one product of matrices on its device."""
    base, tree = engine.base, engine.tree(temperature)
    num_nodes = engine.num_nodes(temperature)
    base_bytes, base_weights = weights_read(base)
    head_bytes = head_flops = 0
    if engine.heads is not None and engine.drafter.needs_heads:
        # Eagle heads are asked in torch.
        is_eagle = engine.heads.config.kind == "eagle"
        num_bytes = draft_dtype(base).itemsize if is_eagle else bytes_of_a_number(base)
        for k in range(tree.max_depth):
            output = engine.heads.num_candidates * base.hidden_size  # the rows of its output matrix that drafting reads
            numbers = output + engine.heads.num_read(k)
            head_bytes += int(numbers * num_bytes)
            # Heads that read the path are asked for every parent of their level, the others once.
            head_flops += 2 * numbers * (_num_parents(tree, k) if engine.heads.config.reads_path else 1)
    return Ceiling(
        base_bytes=base_bytes,
        step_bytes=base_bytes + head_bytes,
        step_flops=2 * base_weights * num_nodes + head_flops,
        num_nodes=num_nodes,
        bytes_per_s=_bandwidth(base_bytes, base.device),
        flops_per_s=flop_rate(base),
    )


def _num_parents(tree: Tree | DynamicTree, depth: int) -> int:
    """How many nodes of this depth are asked for children."""
    if isinstance(tree, DynamicTree):
        return min(MOST_PARENTS, tree.num_nodes - 1) if depth else 1
    is_parent = set(tree.parents)
    return sum(d == depth and n in is_parent for n, d in enumerate(tree.depths))


def weights_read(base: Base) -> tuple[int, int]:
    """(bytes, numbers) that a forward reads: all but an input embedding of its own, of which it reads a few rows.

    Of a base that processes divide, what this one reads.
    """
    embedding = base.model.get_input_embeddings().weight
    if base.quantization == "int4":
        forward = base.forward()
        assert isinstance(forward, CompiledLlama)
        return forward.num_bytes, forward.num_weights
    num_bytes = num_weights = 0
    for weight in base.model.parameters():
        if weight is embedding and weight is not base.lm_head_weight:
            continue
        own = weight.to_local() if isinstance(weight, DTensor) else weight
        num_bytes += own.numel() * own.element_size()
        num_weights += own.numel() * (1 if own.is_floating_point() else 2)  # 4-bit weights: two a byte
    return num_bytes, num_weights


def _bandwidth(size: int, device: torch.device) -> float:
    """Bytes a second of reading a buffer as large as the weights, so that what a cache holds counts as such."""
    size = min(max(size, _MIN_BUFFER), _MAX_BUFFER)
    buffer = torch.ones(size // 4, device=device)
    return buffer.numel() * 4 / _best_seconds(buffer.sum, device)


def flop_rate(base: Base) -> float:
    width = 4096 if base.device.type == "cuda" else 512
    matrix = torch.ones(width, width, dtype=base.dtype, device=base.device)
    return 2 * width**3 / _best_seconds(lambda: matrix @ matrix, base.device)


def _best_seconds(work: Callable[[], object], device: torch.device) -> float:
    """The shortest of a few runs: anything longer was other work on this machine."""
    seconds = []
    for _ in range(_REPEATS + 1):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])
