"""Determinism: two runs of one command that are equal to the last bit.

Everything random is drawn from seeds already. What remains is the order in which numbers are added: torch is told to
use only algorithms that keep it (slower on a GPU, where some operations have none and then say so), cuBLAS gets a fixed
workspace, and on the CPU one thread does it where no number of threads was asked for. Equal means the same machine,
library versions and number of processes. What a clock decides (the size of a calibrated tree) may still differ; it
changes no text.
"""

import os
import random


def be_deterministic(seed: int, threads: int) -> None:
    """For the rest of this process; before anything touches a GPU. threads: as asked, 0 for any."""
    import torch  # here: composing a config must not wait for torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # Filling fresh memory finds reads of it; it is slow, and nothing here reads what it has not written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    random.seed(seed)
    torch.manual_seed(seed)
    if threads == 0:
        torch.set_num_threads(1)


def refusal(error: RuntimeError) -> str | None:
    """What to tell a user whose GPU has no deterministic way to do an operation; None for any other error."""
    reason = str(error).splitlines()[0] if str(error) else ""
    if "deterministic" not in reason:
        return None
    return f"deterministic=true cannot be kept: {reason} Use base.device=cpu, or leave deterministic out."
