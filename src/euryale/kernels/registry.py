"""Which implementation of a kernel runs, and why: one table, one logged line for each choice, no silent fallback.

backend=auto takes the first implementation of the table that this card and these sizes allow, and the line says what
kept the ones before it from running. A backend that is named runs or is refused with the reason and one that would do.
"""

import importlib
import logging
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from euryale.errors import UserError
from euryale.kernels.backends import BACKENDS, why_not
from euryale.kernels.tree_split import MOST_GROUP, MOST_NODES, REACH

log = logging.getLogger(__name__)

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
HALVES = (torch.bfloat16, torch.float16)


class Multiples:
    """The whole numbers that `of` divides, from `of` to `most`."""

    def __init__(self, of: int, most: int) -> None:
        self.of, self.most = of, most

    def __contains__(self, value: object) -> bool:
        return isinstance(value, int) and 0 < value <= self.most and value % self.of == 0


@dataclass(frozen=True)
class Implementation:
    """One way to run a kernel."""

    backend: str
    module: str  # under euryale.kernels; its function has the kernel's name
    reason: str  # why it has this place in the order
    limits: Mapping[str, Container[object]] = field(default_factory=dict)  # of what `choose` is told; others are free


def _triton(name: str, reason: str, **limits: Container[object]) -> Implementation:
    return Implementation("triton", f"triton.{name}", reason, limits)


def _torch(module: str) -> Implementation:
    return Implementation("torch", module, "the specification: every device, dtype and size")


_TREE = dict(num_nodes=range(1, MOST_NODES + 1), depth=range(REACH + 1), group_size=range(1, MOST_GROUP + 1))
KERNELS: dict[str, tuple[Implementation, ...]] = {
    "tree_attention": (
        _triton(
            "tree_attention", "wgmma on Hopper, loads in flight while it computes",
            dtype=FLOATS, head_size=(16, 32, 64, 128), **_TREE,
        ),
        Implementation(
            "cuda", "cuda.tree_attention", "mma.sync on every card; needs no triton",
            dict(dtype=(torch.bfloat16,), head_size=(64, 128), **_TREE),
        ),
        _torch("reference"),
    ),
    "nf4_linear": (
        Implementation(
            "cuda", "cuda.nf4_linear", "about 1.2 ALU operations a weight: bound by memory on an H100 (computed)",
            dict(dtype=(torch.bfloat16,), num_rows=range(1, 33), block_size=(64,), num_inputs=Multiples(64, 2**20),
                 num_outputs=Multiples(2, 2**30)),
        ),
        _triton(
            "nf4_linear", "2.9 ALU operations a weight: bound by them on an H100 (computed)",
            dtype=HALVES, num_rows=range(1, 33), block_size=(64,), num_inputs=Multiples(64, 2**20),
        ),
        _torch("reference"),
    ),
    "accept_walk": (
        _triton("accept_walk", "one launch for about thirty", num_nodes=range(1, MOST_NODES + 1)),
        _torch("reference"),
    ),
    "kv_commit": (
        _triton("kv_commit", "one launch for all layers, in place", num_nodes=range(1, MOST_NODES + 1)),
        _torch("reference"),
    ),
    "kv_write": (
        _triton("kv_write", "rope, norms and the cache write in one launch", dtype=FLOATS, head_size=Multiples(2, 256)),
        _torch("reference_small"),
    ),
    "top_k": (_triton("top_k", "two launches, ties to the lowest id", num=range(1, 33)), _torch("reference_small")),
    "draw": (_triton("draw", "noise is made where it is added", dtype=FLOATS), _torch("reference_small")),
    "rms_norm": (
        _triton("rms_norm", "with the residual in one launch", dtype=FLOATS, width=range(1, 16385)),
        _torch("reference_small"),
    ),
    "swiglu": (_triton("swiglu", "one launch for two", dtype=FLOATS), _torch("reference_small")),
}  # fmt: skip
SIZES = {name for kernel in KERNELS.values() for implementation in kernel for name in implementation.limits}
# Other names of the same operations: what a verification step does to a prefix, and what a layer does to its cache.
ALIASES = {"verify_prefix": "accept_walk", "kv_append": "kv_write"}


class Choice(NamedTuple):
    """What runs."""

    kernel: str
    backend: str
    reason: str
    function: Callable[..., object]


def choose(kernel: str, device: torch.device, backend: str = "auto", **sizes: object) -> Choice:
    """`find`, and the one line in the log that says what runs and why."""
    choice = find(kernel, device, backend, **sizes)
    log.info("kernel %s: %s (%s)", choice.kernel, choice.backend, choice.reason)
    return choice


def find(kernel: str, device: torch.device, backend: str = "auto", **sizes: object) -> Choice:
    """The implementation of `kernel` for tensors of these sizes on a device.

    sizes: of the names in the table, for example dtype=torch.bfloat16, head_size=128, num_nodes=64. Raises UserError
    for names that do not exist, and for a named backend that cannot: with the value, and the backend that does it.
    """
    name = ALIASES.get(kernel, kernel)
    if name not in KERNELS:
        raise UserError(f"kernel must be one of {', '.join([*KERNELS, *ALIASES])}; got {kernel}.")
    assert set(sizes) <= SIZES, f"the table has no limit of these names: {set(sizes) - SIZES}"
    if backend not in ("auto", *BACKENDS):
        raise UserError(f"backend must be one of auto, {', '.join(BACKENDS)}; got {backend}.")
    problems: dict[str, str] = {}
    for implementation in KERNELS[name]:
        if backend not in ("auto", implementation.backend):
            continue
        problem = _problem(implementation, device, sizes, is_named=backend != "auto")
        if problem is None:
            reason = "; ".join([implementation.reason, *(f"not {other}: {why}" for other, why in problems.items())])
            return Choice(name, implementation.backend, reason, _load(name, implementation))
        problems[implementation.backend] = problem
    if not problems:
        offered = ", ".join(implementation.backend for implementation in KERNELS[name])
        raise UserError(f"{name}: backend must be one of auto, {offered}; got {backend}.")
    able = next(x.backend for x in KERNELS[name] if _problem(x, device, sizes, is_named=False) is None)
    raise UserError(f"{name}: backend={backend} cannot run: {problems[backend]}. Use backend={able}.")


def standing(device: torch.device) -> list[tuple[str, str, str, str]]:
    """The whole table on this device, best first: (kernel, backend, runs | ready | no, reason)."""
    rows = []
    for name, implementations in KERNELS.items():
        is_chosen = False
        for implementation in implementations:
            problem = why_not(implementation.backend, device, is_named=False)
            state = "no" if problem else "ready" if is_chosen else "runs"
            is_chosen = is_chosen or problem is None
            rows.append((name, implementation.backend, state, problem or implementation.reason))
    return rows


def _problem(
    implementation: Implementation, device: torch.device, sizes: Mapping[str, object], is_named: bool
) -> str | None:
    """What keeps an implementation from running: the machine, or a size."""
    if problem := why_not(implementation.backend, device, is_named):
        return problem
    for name, value in sizes.items():
        allowed = implementation.limits.get(name)
        if allowed is not None and value not in allowed:
            return f"{name} must be {_words(allowed)}; got {_word(value)}"
    return None


def _words(allowed: Container[object]) -> str:
    if isinstance(allowed, range):
        return f"{allowed[0]} to {allowed[-1]}"
    if isinstance(allowed, Multiples):
        return f"a multiple of {allowed.of} up to {allowed.most}"
    assert isinstance(allowed, tuple)
    *most, last = map(_word, allowed)
    return f"{', '.join(most)} or {last}" if most else last


def _word(value: object) -> str:
    return str(value).removeprefix("torch.")


def _load(kernel: str, implementation: Implementation) -> Callable[..., object]:
    """Imports the module only now: triton is not installed everywhere."""
    function: Callable[..., object] = getattr(
        importlib.import_module(f"euryale.kernels.{implementation.module}"), kernel
    )
    return function
