"""Peak memory of a piece of work, and memory that is free.

On the host the resident set of the process: everything in it, the libraries too. Linux can start counting anew; where
that is not possible the number is the highest since the process began. On a GPU what torch's allocator gave out.
"""

import ctypes
import gc
import os
import platform
import resource
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

CGROUP = Path("/sys/fs/cgroup")  # where a container finds its own limit
_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # see proc(5)


# Of mallopt(3), and the environment that says the same.
_TRIM, _MMAP = (-1, "MALLOC_TRIM_THRESHOLD_"), (-3, "MALLOC_MMAP_THRESHOLD_")
KEPT, _LARGEST_KEPT = 1 << 27, 1 << 25  # bytes; glibc takes no larger threshold for mmap


class Peak(NamedTuple):
    """Bytes; None where there is no such memory."""

    host_bytes: int
    device_bytes: int | None


def begin_peak(device: torch.device) -> None:
    """From here on `peak` counts."""
    with suppress(OSError):  # another system, or a sandbox that forbids it: the process's own highest stands
        _CLEAR.write_text(_RESET_PEAK)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak(device: torch.device) -> Peak:
    """The highest since `begin_peak`."""
    on_device = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return Peak(_host_peak(_STATUS), on_device)


def reserved_peak(device: torch.device) -> int | None:
    """What torch's allocator held of a GPU at most since `begin_peak`, gaps between tensors included."""
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None


def used_bytes(device: torch.device) -> int:
    """Of a GPU, by everything on it: other programs, libraries, and what an optimizer pages in and out by itself."""
    free, total = torch.cuda.mem_get_info(device)
    return total - free


def let_go(device: torch.device) -> None:
    """Collects what is not held any more, and gives the free blocks of torch's allocator back to a GPU, those of glibc
    back to the system."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def resident() -> int:
    """Bytes of the process now; 0 where the system does not say."""
    return _host_bytes(_STATUS, "VmRSS:") or 0


def free_bytes(device: torch.device) -> int:
    """What this process can still take: of the GPU, or of main memory and the limit of its control group."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = psutil.virtual_memory().available
    limit, used = CGROUP / "memory.max", CGROUP / "memory.current"
    if limit.is_file() and used.is_file() and (text := limit.read_text().strip()) != "max":
        free = min(free, int(text) - int(used.read_text()))
    return max(0, free)


def _host_peak(status: Path) -> int:
    counted = _host_bytes(status, "VmHWM:")
    if counted is not None:
        return counted
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _host_bytes(status: Path, name: str) -> int | None:
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(name)), None)


@cache
def keep_freed_memory() -> bool:
    """Lets glibc keep freed blocks for the next step, once per process: at most 128 MB, none above 32 MB.

    Without it large temporaries go back to the system after each step and come back page by page. False: another
    C library, which is left as it is, or thresholds that the user set in the environment.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for _, name in (_TRIM, _MMAP)):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(number, size) == 1 for (number, _), size in ((_TRIM, KEPT), (_MMAP, _LARGEST_KEPT)))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the memory of the host or of a GPU did not suffice; torch has no class of its own for the former."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)
