"""What each backend needs of a machine: a card, a compiler, a version.

triton on a CPU is its interpreter, for tests: it runs there only where it is named and TRITON_INTERPRET=1 is set.
"""

import importlib.metadata
import os
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache

import torch

from euryale.kernels.cuda.compile import Compiler, find_compiler

BACKENDS = ("triton", "cuda", "torch")
OLDEST_CARD = (8, 0)  # bfloat16 on tensor cores, and asynchronous copies
OLDEST_TRITON = (3, 6)


def why_not(backend: str, device: torch.device, is_named: bool) -> str | None:
    """Why a backend cannot run on a device; None: it can. is_named: a user asked for this backend."""
    if backend == "torch":
        return None
    if backend == "triton" and (problem := _triton_problem()):
        return problem
    if device.type == "cpu" and backend == "triton" and is_named and os.environ.get("TRITON_INTERPRET") == "1":
        return None
    if device.type != "cuda":
        interpreter = ", where TRITON_INTERPRET=1 must be set for Triton's interpreter" if is_named else ""
        return f"it needs a CUDA card; the device is {device.type}{interpreter if backend == 'triton' else ''}"
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST_CARD:
        have, need = (".".join(map(str, version)) for version in (capability, OLDEST_CARD))
        return f"it needs a card of compute capability {need} or newer; {torch.cuda.get_device_name(device)} has {have}"
    if backend == "cuda":
        compiler = _compiler()
        return None if isinstance(compiler, Compiler) else f"it needs a compiler; {compiler}"
    return None


def on_card(device: torch.device) -> AbstractContextManager[object]:
    """Makes the device torch's current card: kernels are launched on that, whatever card their tensors are on, and
    every thread has its own."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@lru_cache(maxsize=1)
def _compiler() -> Compiler | str:
    return find_compiler()


def _triton_problem() -> str | None:
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return "triton is not installed"
    if tuple(map(int, version.split(".")[:2])) < OLDEST_TRITON:
        oldest = ".".join(map(str, OLDEST_TRITON))
        return f"triton {version} is too old; {oldest} or newer is needed"
    return None
