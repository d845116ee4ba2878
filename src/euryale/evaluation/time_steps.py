"""Times of whole decoding steps with trees of several sizes, taken in turns."""

import statistics
import time
from collections.abc import Mapping

import torch

from euryale.base.base import Base
from euryale.decoding.decoder import Decoder
from euryale.decoding.drafters.build import build_drafter
from euryale.decoding.drafters.head_matrices import HeadMatrices
from euryale.decoding.drafters.heads import HeadsDrafter
from euryale.decoding.drafters.interface import Drafter
from euryale.decoding.sampling import Sampling
from euryale.decoding.tree.tree import Tree
from euryale.evaluation.choose_size import Size
from euryale.evaluation.config import CalibrateConfig
from euryale.heads.heads import Heads

_BURST = 4  # steps of one size at a time, of which the first is not counted
_PARTS = ("prefill", "draft", "verify", "accept", "commit")


class SharedMatrices(HeadMatrices):
    """The heads laid out once for trees of every depth: for an 8B base each layout is hundreds of megabytes."""

    def __init__(self, base: Base, heads: Heads, num_heads: int) -> None:
        super().__init__(base, heads, num_heads)
        self._by_depth: dict[int, HeadMatrices] = {num_heads: self}

    def first(self, num_heads: int) -> HeadMatrices:
        if num_heads not in self._by_depth:
            self._by_depth[num_heads] = super().first(num_heads)
        return self._by_depth[num_heads]


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

    The context is the prompt repeated to calibrate.context_tokens, and every timed step starts from it again.
    """
    context = (prompt * (config.context_tokens // len(prompt) + 1))[: min(config.context_tokens, base.max_length // 2)]
    decoders = {}
    for size, drafter in _drafters(base, heads, trees).items():
        seconds = dict.fromkeys(_PARTS, 0.0)
        room = len(context) + 2 * drafter.num_nodes + 8
        decoders[size] = Decoder(base, drafter, Sampling(temperature), 1, room, seconds)
        decoders[size].admit(0, [context], [config.seed])
    times: dict[Size, list[float]] = {size: [] for size in trees}
    for _ in range(config.repeats):
        for size, decoder in decoders.items():
            times[size].append(_turn(base, decoder, len(context) - 1))
    return times


def _drafters(base: Base, heads: Heads, trees: Mapping[Size, Tree]) -> dict[Size, Drafter]:
    """A drafter for each tree, all over the same matrices."""
    deepest = max(tree.max_depth for tree in trees.values())
    if heads.config.kind == "eagle" or not deepest:
        return {
            size: build_drafter("heads" if tree.num_nodes > 1 else "none", base, heads, tree)
            for size, tree in trees.items()
        }
    shared = SharedMatrices(base, heads, deepest)
    return {
        size: HeadsDrafter(base, heads, tree, matrices=shared)
        if tree.num_nodes > 1
        else build_drafter("none", base, heads, tree)
        for size, tree in trees.items()
    }


def _turn(base: Base, decoder: Decoder, length: int) -> float:
    """The median of a burst of steps, each behind `length` tokens in the cache."""
    spent = []
    for _ in range(_BURST):
        decoder.arena.lengths = [length]
        _synchronise(base)
        start = time.perf_counter()
        decoder.step()
        _synchronise(base)
        spent.append(1e3 * (time.perf_counter() - start))
    return statistics.median(spent[1:])  # the first finds other trees' weights in the processor's caches


def _synchronise(base: Base) -> None:
    if base.device.type == "cuda":
        torch.cuda.synchronize(base.device)
