"""Times of whole decoding steps with trees of several sizes, taken in turns."""

import statistics
import time
from collections.abc import Hashable, Mapping
from typing import TypeVar

import torch

from euryale.base.base import Base
from euryale.decoding.decoder import Decoder
from euryale.decoding.drafters.build import build_drafter, build_matrices
from euryale.decoding.request import Request
from euryale.decoding.sampling import Sampling
from euryale.decoding.tree.calibration import Calibration
from euryale.decoding.tree.tree import DynamicTree, Tree
from euryale.evaluation.config import CalibrateConfig
from euryale.heads.heads import Heads

_BURST = 4  # steps of one size at a time, of which the first is not counted
_PARTS = ("prefill", "draft", "verify", "accept", "commit")
Name = TypeVar("Name", bound=Hashable)


def time_steps(
    base: Base,
    heads: Heads,
    trees: Mapping[Name, Tree | DynamicTree],
    prompt: list[int],
    calibration: Calibration,
    config: CalibrateConfig,
) -> dict[Name, list[float]]:
    """Milliseconds of a whole step for each tree, one number a turn, in turns so that a busy moment hits all.

    A turn is several steps of one size, as in decoding: single steps would each start with cold caches, which costs
    the smallest the most and makes speculation look better than it is. The number is the median of its steps.

    calibration: its temperature is that of the steps, and dynamic trees ask it how often each rank was right.
    The context is the prompt repeated to calibrate.context_tokens, at most half of what the base takes; every timed
    step starts from it again.
    """
    length = min(config.context_tokens, base.max_length // 2)
    context = (prompt * (length // len(prompt) + 1))[:length]
    decoders, matrices = {}, build_matrices(base, heads)
    for size, tree in trees.items():
        n = tree.num_nodes
        drafter = build_drafter("heads" if n > 1 else "none", base, heads, tree, calibration, matrices=matrices)
        decoders[size] = Decoder(base, drafter, 1, len(context) + (_BURST + 1) * n + 8, dict.fromkeys(_PARTS, 0.0))
        decoders[size].add(0, [Request(context, base.tokenizer, Sampling(calibration.temperature), config.seed)])
    times: dict[Name, list[float]] = {size: [] for size in trees}
    for _ in range(config.repeats):
        for size, decoder in decoders.items():
            times[size].append(_turn(base, decoder, len(context) - 1))
    return times


def _turn(base: Base, decoder: Decoder, length: int) -> float:
    """The median of a burst of steps, each after `length` tokens in the cache; those on the device after a few more,
    because to set lengths back is to wait for them."""
    spent = []
    for number in range(_BURST):
        if number == 0 or not decoder.runs_ahead:
            decoder.rewind([length])
        synchronise(base)
        start = time.perf_counter()
        decoder.step()
        synchronise(base)
        spent.append(1e3 * (time.perf_counter() - start))
    return statistics.median(spent[1:])  # the first finds other trees' weights in the processor's caches


def synchronise(base: Base) -> None:
    """Waits for what runs on the device."""
    if base.device.type == "cuda":
        torch.cuda.synchronize(base.device)
