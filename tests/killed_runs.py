"""The tiny run of test_trainer, in children that are killed in the middle (kill -9). Not a test file itself.

The children are forks, because importing is what takes long.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
from plain_heads import plain_heads

from euryale.base.base import Base
from euryale.heads.heads import build_heads
from euryale.training.config import ObjectiveConfig, OptimConfig
from euryale.training.trainer import Trainer

OPTIM = {
    "name": "adamw", "lr": 3e-3,
    "num_steps": 12, "warmup_steps": 2, "gradient_accumulation": 2, "log_every": 3, "eval_every": 5, "eval_batches": 2,
    "save_every": 4,
}  # fmt: skip


def make_batch(seed: int, rows: int = 2, length: int = 16) -> SimpleNamespace:
    generator = torch.Generator().manual_seed(seed)
    ids_BT = torch.randint(3, 99, (rows, length), generator=generator)
    return SimpleNamespace(
        ids_BT=ids_BT,
        is_target_BT=torch.rand(rows, length, generator=generator) < 0.8,
        positions_BT=torch.arange(length).expand(rows, length),
        documents_BT=torch.zeros_like(ids_BT),
    )


class MemoryStream:
    """Seeded batches without end; `at` is called with the number of batches given out before each one."""

    def __init__(self, at: Callable[[int], None] = lambda number: None) -> None:
        self.number = 0
        self.origins: list[str] = []
        self.at = at

    def __next__(self) -> SimpleNamespace:
        self.at(self.number)
        self.number += 1
        self.origins = [f"memory:{self.number}"]
        return make_batch(self.number)

    def state_dict(self) -> dict:
        return {"number": self.number}

    def load_state_dict(self, state: dict) -> None:
        self.number = state["number"]


def make_trainer(base: Base, folder: Path, at: Callable[[int], None] = lambda number: None, **changes) -> Trainer:  # type: ignore[no-untyped-def]
    """The run that every test varies: two hydra heads, twelve steps of two batches."""
    optim = OptimConfig(**(OPTIM | changes.pop("optim", {})))
    heads = build_heads(changes.pop("heads", plain_heads(num_heads=2, width=1.0)), base.lm_head_weight)
    objective = changes.pop("objective", ObjectiveConfig())
    batches = changes.pop("batches", None) or MemoryStream(at)
    held_out = [make_batch(1000), make_batch(1001)]
    return Trainer(base, heads, objective, optim, batches, held_out, folder, **changes)


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at_batch(number: int) -> Callable[[Base, Path, bool], None]:
    def run(base: Base, folder: Path, resume: bool) -> None:
        make_trainer(base, folder, lambda n: die() if n == number else None, resume=resume).fit()

    return run


def die_at_rename(count: int, after: bool = False) -> Callable[[Base, Path, bool], None]:
    """Dies at the count-th rename of the run: renames are the only moments at which files change."""

    def run(base: Base, folder: Path, resume: bool) -> None:
        plain, seen = os.replace, []

        def replace(source: Path, target: Path) -> None:
            seen.append(target)
            if len(seen) < count:
                return plain(source, target)
            if after:
                plain(source, target)
            die()

        os.replace = replace  # type: ignore[assignment]
        make_trainer(base, folder, resume=resume).fit()

    return run


# Saves come after batches 8, 16 and 24 (two a step). Each save renames resume/step-N, then the two files of the heads.
SCENARIOS: dict[str, list[Callable[[Base, Path, bool], None]]] = {
    "between saves, twice": [die_at_batch(11), die_at_batch(21)],
    "with a save staged but not renamed": [die_at_rename(4)],
    "right after the rename, the old save still there": [die_at_rename(4, after=True)],
    "between the two files of the heads": [die_at_rename(5, after=True)],
    "after the last save, before its heads": [die_at_rename(7, after=True)],
    "between the two files of the last heads": [die_at_rename(8, after=True)],
}


def fork(work: Callable[[], object]) -> int:
    """Starts `work` in a fork, whose status says whether it came to its end; returns the process number."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return pid


def in_child(work: Callable[[], object]) -> int:
    """Runs `work` in a fork; returns its exit status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(fork(work), 0)[1])


def kill_and_resume(base: Base, out: Path) -> None:
    """Every scenario in out/<its name>: killed once or twice, then resumed to its end."""
    for name, deaths in SCENARIOS.items():
        folder = out / name
        for number, run in enumerate(deaths):
            status = in_child(lambda run=run, folder=folder, number=number: run(base, folder, number > 0))  # type: ignore[misc]
            assert status == -signal.SIGKILL, (name, status)
        assert in_child(lambda folder=folder: make_trainer(base, folder, resume=True).fit()) == 0, name  # type: ignore[misc]
