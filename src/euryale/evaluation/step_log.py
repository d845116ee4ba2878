"""Log of single steps: one JSON line each, with the time of its parts.

On a GPU draft and verify return before the device has finished, so `accept`, which waits, is charged for them; with
CUDA_LAUNCH_BLOCKING=1 in the environment every part is its own. Nothing is measured, and nothing costs time, without
a file.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import torch

from euryale.decoding.engine import Engine
from euryale.decoding.scheduler import StepSeen
from euryale.errors import UserError
from euryale.system import processes
from euryale.system.memory import resident
from euryale.system.paths import user_path


@contextmanager
def log_steps(engine: Engine, file: str | None) -> Iterator[None]:
    """Adds the steps that the engine takes inside to `file`; None logs none. Of several processes the first one does.

    A line: rows (live answers), num_nodes (of each row's tree), tokens (gained by each row), milliseconds of every
    part (prefill_ms is what was read of prompts before the step), host_bytes, and device_bytes on a GPU.
    Raises UserError when the file cannot be written.
    """
    if file is None or not processes.is_first():
        yield
        return
    path = user_path(file, "steps")
    with _told(file):
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("a", encoding="utf-8")
    engine.on_step = _Writer(engine, stream, file)
    try:
        yield
    finally:
        engine.on_step = None
        with _told(file):
            stream.close()


@contextmanager
def _told(file: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"steps={file} cannot be written: {error}. Give another file, or make room.") from error


class _Writer:
    def __init__(self, engine: Engine, stream: TextIO, file: str) -> None:
        self._engine = engine
        self._stream = stream
        self._file = file
        self._before = dict(engine.seconds)

    def __call__(self, seen: StepSeen) -> None:
        seconds, device = self._engine.seconds, self._engine.base.device
        parts = {f"{part}_ms": round(1000 * (total - self._before[part]), 4) for part, total in seconds.items()}
        self._before = dict(seconds)
        line: dict[str, object] = {"rows": len(seen.tokens), "num_nodes": seen.num_nodes, "tokens": seen.tokens}
        line |= parts | {"host_bytes": resident()}
        if device.type == "cuda":
            line["device_bytes"] = torch.cuda.memory_allocated(device)
        with _told(self._file):
            self._stream.write(json.dumps(line) + "\n")
