"""Times of whole decoding steps with trees of several sizes, taken in turns."""

import statistics
import time
from collections.abc import Mapping

import torch

from euryale.base.base import Base
from euryale.decoding.decoder import Decoder
from euryale.decoding.drafters.build import build_drafter, build_matrices
from euryale.decoding.request import Request
from euryale.decoding.sampling import Sampling
from euryale.decoding.tree.tree import Tree
from euryale.evaluation.choose_size import Size
from euryale.evaluation.config import CalibrateConfig
from euryale.heads.heads import Heads

_BURST = 4  # steps of one size at a time, of which the first is not counted
_PARTS = ("prefill", "draft", "verify", "accept", "commit")


def time_steps(
    base: Base,
    heads: Heads,
    trees: Mapping[Size, Tree],
    prompt: list[int],
    temperature: float,
    config: CalibrateConfig,
) -> dict[Size, list[float]]:
    """Milliseconds of a whole step for each tree, one number a turn, in turns so that a busy moment hits all.

    A turn is several steps of one size, as in decoding: single steps would each start with cold caches, which costs
    the smallest the most and makes speculation look better than it is. The number is the median of its steps.

    The context is the prompt repeated to calibrate.context_tokens, at most half of what the base takes; every timed
    step starts from it again.
    """
    length = min(config.context_tokens, base.max_length // 2)
    context = (prompt * (length // len(prompt) + 1))[:length]
    decoders, matrices = {}, build_matrices(base, heads)
    for size, tree in trees.items():
        n = tree.num_nodes
        drafter = build_drafter("heads" if n > 1 else "none", base, heads, tree, matrices=matrices)
        decoders[size] = Decoder(base, drafter, 1, len(context) + (_BURST + 1) * n + 8, dict.fromkeys(_PARTS, 0.0))
        decoders[size].add(0, [Request(context, base.tokenizer, Sampling(temperature), config.seed)])
    times: dict[Size, list[float]] = {size: [] for size in trees}
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
        _synchronise(base)
        start = time.perf_counter()
        decoder.step()
        _synchronise(base)
        spent.append(1e3 * (time.perf_counter() - start))
    return statistics.median(spent[1:])  # the first finds other trees' weights in the processor's caches


def _synchronise(base: Base) -> None:
    if base.device.type == "cuda":
        torch.cuda.synchronize(base.device)
