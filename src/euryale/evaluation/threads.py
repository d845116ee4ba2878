"""Number of CPU threads that decodes fastest: small matrices are often done sooner by one than by several that wait."""

import logging
import time
from pathlib import Path

import torch

from euryale.base.base import Base
from euryale.decoding.engine import Engine
from euryale.decoding.tree.calibration import TREE_FILE
from euryale.errors import UserError
from euryale.system.files import read_json

_ROUNDS = 4
_TOKENS = 12
_ROWS = 6
_WORTH_IT = 0.7  # several threads must be this much sooner than one: they take cores from other work
log = logging.getLogger(__name__)


def use_fastest_threads(base: Base) -> None:
    """Sets one thread or as many as torch uses now, whichever decodes a token sooner; on a GPU nothing."""
    most = torch.get_num_threads()
    if base.device.type != "cpu" or most == 1:
        return
    engine = Engine(base, drafter="none")
    # As many rows as a small tree has: that is what decoding will read, and several threads help a single row most.
    prompts = [[base.bos_id or 0] * min(16, base.max_length // 2)] * _ROWS
    best: dict[int, float] = {}
    for _ in range(_ROUNDS):  # in turns, so that a busy moment hits both; the best of each is what it can do
        for threads in (1, most):
            torch.set_num_threads(threads)
            start = time.perf_counter()
            num_tokens = len(engine.generate(prompts, _TOKENS)[0].ids)
            best[threads] = min(best.get(threads, float("inf")), (time.perf_counter() - start) / num_tokens)
    # Near ties go to one thread: on two vCPUs with the bundled base, idle, whole answers were 4 and 31% sooner with two
    # (two interleaved pairs), but several threads that share busy cores wait for each other and lose far more.
    fastest = most if best[most] < _WORTH_IT * best[1] else 1
    torch.set_num_threads(fastest)
    timed = ", ".join(f"{threads}: {1e3 * seconds:.1f} ms a step" for threads, seconds in best.items())
    log.info("decoding with %d CPU thread(s) (%s)", fastest, timed)


def use_calibrated_threads(base: Base, folder: Path) -> None:
    """Sets the number of threads that the checkpoint's tree was timed with, where this machine has them."""
    if base.device.type != "cpu" or not (folder / TREE_FILE).is_file():
        return
    try:
        threads = read_json(folder / TREE_FILE).get("threads")
    except UserError:  # reading the tree in it says so
        return
    if isinstance(threads, int) and 1 <= threads <= torch.get_num_threads():
        torch.set_num_threads(threads)
