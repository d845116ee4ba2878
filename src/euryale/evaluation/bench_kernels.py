"""Microbenchmark of kernels: time of every backend that runs here, against the specification and the copy bandwidth.

On a GPU a call is timed between two events after a buffer larger than the L2 cache was written, so that weights come
from memory, as in a step. Times are medians. Every backend's result is compared with the specification's first.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from euryale.base.precision import DTYPES
from euryale.errors import UserError, check_option
from euryale.evaluation.config import KernelShapes
from euryale.evaluation.kernel_cases import Case, cases
from euryale.kernels.backends import BACKENDS
from euryale.kernels.registry import ALIASES, KERNELS, Choice, find
from euryale.system.memory import free_bytes
from euryale.system.units import gigabytes

META = torch.device("meta")
_FLUSH_BYTES = 256 << 20  # five times the L2 cache of an H100
_COPY_BYTES = {"cuda": 512 << 20, "cpu": 64 << 20}


def bench_dtype(name: str) -> torch.dtype:
    """Raises UserError for what is not one of the three float types."""
    check_option("dtype", name, DTYPES)
    return DTYPES[name]


def copy_bandwidth(device: torch.device, repeats: int) -> float:
    """Bytes a second of a plain copy, read and written bytes counted."""
    source = torch.ones(_COPY_BYTES.get(device.type, _COPY_BYTES["cpu"]), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = _median_seconds(lambda: target.copy_(source), device, repeats)
    return 2 * source.numel() / seconds


def bench_kernels(
    shapes: KernelShapes, num_nodes: int, dtype: torch.dtype, device: torch.device, names: list[str], repeats: int
) -> list[dict[str, Any]]:
    """A row for each kernel and backend that takes these sizes here; [] of names is all.

    Row: kernel, backend, num_nodes, us, bytes, gb_per_s, and difference: of its results from the specification's, as a
    share of their size. Raises UserError for a kernel that does not exist.
    """
    rows = []
    for case in cases(shapes, num_nodes, dtype, device, known_kernels(names)):
        specification = find(case.kernel, device, "torch", **case.sizes)
        expected = _results(case, specification)
        for backend in BACKENDS:
            choice = _choice(case, device, backend)
            if choice is None:
                continue
            difference = _difference(_results(case, choice), expected)
            seconds = _median_seconds(partial(choice.function, *case.make()), device, repeats)
            rows.append(
                {
                    "kernel": case.kernel,
                    "backend": backend,
                    "num_nodes": num_nodes,
                    "us": seconds * 1e6,
                    "bytes": case.num_bytes,
                    "gb_per_s": case.num_bytes / seconds / 1e9,
                    "difference": difference,
                }
            )
    return rows


def known_kernels(names: Sequence[str]) -> list[str]:
    """The kernels of these names, each once; [] of names is all. Raises UserError for one that does not exist."""
    known = {**dict.fromkeys(KERNELS), **dict.fromkeys(ALIASES)}
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"kernels must be of {', '.join(known)}; got {unknown[0]}.")
    return list(dict.fromkeys(ALIASES.get(name, name) for name in names)) or list(KERNELS)


def check_memory(
    shapes: KernelShapes, num_nodes: int, dtype: torch.dtype, device: torch.device, names: Sequence[str]
) -> None:
    """Raises UserError where the largest case of these takes more memory than is free; nothing of it is made."""
    needs = {case.kernel: needed_bytes(case) for case in cases(shapes, num_nodes, dtype, META, known_kernels(names))}
    largest, free = max(needs, key=lambda name: needs[name]), free_bytes(device)
    if needs[largest] > free:
        raise UserError(
            f"shapes must fit into memory: at these sizes {largest} of {num_nodes} nodes takes about "
            f"{gigabytes(needs[largest])}, and {gigabytes(free)} are free on {device}. Take smaller shapes, or leave "
            "it out of kernels=[...]."
        )


def needed_bytes(case: Case) -> int:
    """What timing a case takes at its peak, of one that is made for torch's meta device.

    Either two calls' arguments and results, the largest tensor of both in float64 and the difference, or what the
    specification takes on its way.
    """
    arguments = case.make()
    returned = find(case.kernel, torch.device("cpu"), "torch", **case.sizes).function(*arguments)
    tensors = list(_tensors((returned, *arguments)))
    held = sum(tensor.nbytes for tensor in tensors)
    return held + max(held + 3 * 8 * max(tensor.numel() for tensor in tensors), case.work_bytes)


def _choice(case: Case, device: torch.device, backend: str) -> Choice | None:
    """None where the kernel has no such backend, or it does not take these sizes or this machine."""
    if backend not in {implementation.backend for implementation in KERNELS[case.kernel]}:
        return None
    try:
        return find(case.kernel, device, backend, **case.sizes)
    except UserError:
        return None  # the table of infer/list_kernels.py says why


def _results(case: Case, choice: Choice) -> list[Tensor]:
    """Every tensor that comes out: what is returned, and arguments, which some kernels write to."""
    arguments = case.make()
    returned = choice.function(*arguments)
    return list(_tensors((returned, *arguments)))


def _tensors(value: object) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for part in value:
            yield from _tensors(part)


def _difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest of their relative errors; ids and bits that differ count as they are."""
    assert len(found) == len(expected)
    worst = 0.0
    for one, other in zip(found, expected, strict=True):
        error = (one.double() - other.double()).norm() / other.double().norm().clamp(min=1e-30)
        worst = max(worst, float(error))
    return worst


def _median_seconds(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    run()  # compiles, and fills caches of memory
    if device.type != "cuda":
        times = []
        for _ in range(repeats):
            begin = time.perf_counter()
            run()
            times.append(time.perf_counter() - begin)
        return statistics.median(times)
    flush = torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device=device)
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for begin_event, end_event in events:
        flush.zero_()
        begin_event.record()
        run()
        end_event.record()
    torch.cuda.synchronize(device)
    return statistics.median(begin.elapsed_time(end) for begin, end in events) / 1000
