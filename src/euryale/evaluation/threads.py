"""Number of CPU threads that decodes fastest: small matrices are often done sooner by one than by several that wait."""

import logging
import time
from pathlib import Path
from statistics import median

import torch

from euryale.base.base import Base
from euryale.decoding.engine import Engine
from euryale.decoding.tree.calibration import find_tree
from euryale.errors import UserError
from euryale.system.files import read_json

_PAIRS = 7
_TOKENS = 12
_ROWS = 6
# Several threads take cores from other work, and threads that share busy cores wait for each other: they must be this
# much sooner in the median pair, and sooner at all in every pair but one. Where other work comes and goes, pairs
# disagree.
_WORTH_IT = 0.9
_MOST_LOST = 1
log = logging.getLogger(__name__)


def use_fastest_threads(base: Base) -> None:
    """Sets one thread or as many as torch uses now, whichever decodes a token sooner; on a GPU nothing."""
    most = torch.get_num_threads()
    if base.device.type != "cpu" or most == 1:
        return
    engine = Engine(base, drafter="none")
    # As many rows as a small tree has: that is what decoding will read, and several threads help a single row most.
    prompts = [[base.bos_id or 0] * min(16, base.max_length // 2)] * _ROWS
    for threads in (1, most):
        _seconds_a_step(engine, prompts, threads)  # the first of each starts threads and takes memory
    # In turns, so that a busy moment hits both.
    pairs = [tuple(_seconds_a_step(engine, prompts, threads) for threads in (1, most)) for _ in range(_PAIRS)]
    torch.set_num_threads(most if _are_worth_it([several / one for one, several in pairs]) else 1)
    one, several = (1e3 * median(seconds) for seconds in zip(*pairs, strict=True))
    log.info(
        "decoding with %d CPU thread(s) (medians of %d pairs; 1: %.1f ms a step, %d: %.1f ms a step)",
        *(torch.get_num_threads(), _PAIRS, one, most, several),
    )


def _seconds_a_step(engine: Engine, prompts: list[list[int]], threads: int) -> float:
    torch.set_num_threads(threads)
    start = time.perf_counter()
    num_tokens = len(engine.generate(prompts, _TOKENS)[0].ids)
    return (time.perf_counter() - start) / num_tokens


def _are_worth_it(ratios: list[float]) -> bool:
    """Whether several threads are taken; `ratios` are their times over those of one thread, a pair each."""
    return median(ratios) <= _WORTH_IT and sum(ratio >= 1 for ratio in ratios) <= _MOST_LOST


def use_calibrated_threads(base: Base, folder: Path) -> None:
    """Sets the number of threads that the checkpoint's tree was timed with, where this machine has them."""
    file = find_tree(folder, base.quantization)
    if base.device.type != "cpu" or not file.is_file():
        return
    try:
        threads = read_json(file).get("threads")
    except UserError:  # reading the tree in it says so
        return
    if isinstance(threads, int) and 1 <= threads <= torch.get_num_threads():
        torch.set_num_threads(threads)
