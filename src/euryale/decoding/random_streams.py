"""The random numbers of each part of a step.

The base draws with the noise of (seed, position, token); rows at T = 0 draw without noise. Coupled drafters rank their
candidates with the same noise, which guesses the draw itself; uncoupled ones rank plainly. Rule `rejection` needs three
independent streams: the drafter's draws, the uniform numbers, and the base's draw.

Letters: B batch, R rows of a shape (1 or B), P depths, N nodes, V vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from euryale.decoding.noise import KeyedNoise, stream_seed
from euryale.decoding.sampling_batch import SamplingBatch


class StepNoise(NamedTuple):
    """The noise of the positions after the root's, nearest first; all None where every row is at T = 0."""

    drawing_BPV: Tensor | None
    ranking_BPV: Tensor | None
    uniform_BPN: Tensor | None  # only for rule `rejection`; as Gumbel noise

    def drawing(self, depths_RN: Tensor) -> Tensor | None:
        """The noise of the position after each node, [B, N, V]."""
        if self.drawing_BPV is None:
            return None
        if len(depths_RN) == 1:
            return self.drawing_BPV[:, depths_RN[0]]
        return self.drawing_BPV[torch.arange(len(depths_RN), device=depths_RN.device)[:, None], depths_RN]

    def uniform(self, depths_RN: Tensor) -> Tensor | None:
        """A uniform number for every node, [B, N], of its token's position."""
        if self.uniform_BPN is None:
            return None
        index_B1N = (depths_RN - 1).clamp(min=0)[:, None].expand(len(self.uniform_BPN), 1, -1)
        return (-(-self.uniform_BPN.gather(1, index_B1N)[:, 0]).exp()).exp()


class Streams:
    """The noise of the live rows."""

    def __init__(
        self, num_rows: int, is_coupled: bool, is_rejection: bool, vocab_size: int, num_nodes: int, device: torch.device
    ) -> None:
        """is_coupled: drafters rank with the base's noise. is_rejection: they draw with noise of their own."""
        self.is_rejection = is_rejection
        self._is_coupled = is_coupled
        # None of them takes memory before it is asked.
        self._base = KeyedNoise(num_rows, vocab_size, device)
        self._drafter = KeyedNoise(num_rows, vocab_size, device)
        self._uniform = KeyedNoise(num_rows, num_nodes, device)

    def add(self, row: int, seed: int) -> None:
        """Makes `row` live: an ended row's place, or the next after the last."""
        self._base.add(row, seed)
        if self.is_rejection:
            self._drafter.add(row, stream_seed(seed, 1))
            self._uniform.add(row, stream_seed(seed, 2))

    def swap_remove(self, row: int) -> None:
        """Removes an ended row; the last row takes its slot."""
        for noise in (self._base, *((self._drafter, self._uniform) if self.is_rejection else ())):
            noise.swap_remove(row)

    def at(self, lengths: Sequence[int], num_depths: int, settings: SamplingBatch) -> StepNoise:
        """For rows that hold `lengths` tokens, the root not counted."""
        if not settings.has_sampled:
            return StepNoise(None, None, None)
        first = [length + 1 for length in lengths]
        drawing_BPV = self._base.at(first, num_depths)
        if self.is_rejection:
            ranking_BPV = _without_greedy(self._drafter.at(first, num_depths), settings)
            return StepNoise(drawing_BPV, ranking_BPV, self._uniform.at(first, num_depths))
        return StepNoise(drawing_BPV, _without_greedy(drawing_BPV, settings) if self._is_coupled else None, None)


def _without_greedy(noise_BPV: Tensor, settings: SamplingBatch) -> Tensor:
    """What is drawn without noise is ranked without noise."""
    return noise_BPV * settings.is_sampled_B11 if settings.has_greedy else noise_BPV
