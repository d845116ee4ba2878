"""Hardware that a number was measured on: a speed without its machine says nothing.

The commit and the library versions are in `system.provenance`.
"""

import os
import platform
from pathlib import Path

import torch


def hardware() -> dict[str, str | int | None]:
    """cpu (model name), cores (usable by this process), threads (of torch), torch (version), gpu (name or None)."""
    return {
        "cpu": _cpu_name(Path("/proc/cpuinfo")),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _cpu_name(cpuinfo: Path) -> str:
    """The name a buyer would know (Linux says it in one file), else the architecture."""
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name" and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()
