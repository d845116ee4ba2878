"""Which randomness does each part of a step get?

The base draws with the noise of (seed, position, token); rows at T = 0 draw without. Coupled drafters rank their
candidates with the same noise, which guesses the draw itself; uncoupled ones rank plainly. Rule `rejection` needs three
streams that know nothing of each other: the drafter's draws, the dice, and the base's draw.

Letters: B batch, R rows of a shape (1 or B), P depths, N nodes, V vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from euryale.decoding.accept import AcceptConfig
from euryale.decoding.noise import KeyedNoise, stream_seed


class StepNoise(NamedTuple):
    """The noise of the positions after the root's, nearest first; all None where every row is at T = 0."""

    drawing_BPV: Tensor | None
    ranking_BPV: Tensor | None
    dice_BPN: Tensor | None  # only for rule `rejection`

    def chance(self, depths_RN: Tensor) -> Tensor | None:
        """A uniform number for every node, [B, N], of its token's position."""
        if self.dice_BPN is None:
            return None
        index_B1N = (depths_RN - 1).clamp(min=0)[:, None].expand(len(self.dice_BPN), 1, -1)
        return (-(-self.dice_BPN.gather(1, index_B1N)[:, 0]).exp()).exp()


class Streams:
    """The noise of the live rows."""

    def __init__(
        self, num_rows: int, rule: AcceptConfig, vocab_size: int, num_nodes: int, device: torch.device
    ) -> None:
        self._coupled, self._throws_dice, self._device = rule.coupled, rule.name == "rejection", device
        self._temperatures: list[float] = []  # of each live row
        # None of them takes memory before it is asked.
        self._base = KeyedNoise(num_rows, vocab_size, device)
        self._drafter = KeyedNoise(num_rows, vocab_size, device)
        self._dice = KeyedNoise(num_rows, num_nodes, device)

    @property
    def draws(self) -> bool:
        """Whether the drafter is asked for draws."""
        return self._throws_dice and any(self._temperatures)

    @property
    def temperature(self) -> float | Tensor:
        """What drafters divide scores by; one number where all rows agree. Rows at T = 0 have no noise among others."""
        if len(set(self._temperatures)) == 1:
            return self._temperatures[0]
        return torch.tensor([t or 1.0 for t in self._temperatures], device=self._device)[:, None, None]

    def admit(self, row: int, seeds: Sequence[int], temperatures: Sequence[float]) -> None:
        """New rows live from `row` on: in the place of rows that ended, or behind the last."""
        self._temperatures[row : row + len(seeds)] = temperatures
        self._base.admit(row, seeds)
        if self._throws_dice:
            self._drafter.admit(row, [stream_seed(seed, 1) for seed in seeds])
            self._dice.admit(row, [stream_seed(seed, 2) for seed in seeds])

    def retire(self, row: int) -> None:
        """The row has ended; the last one goes on in its place."""
        self._temperatures[row] = self._temperatures[-1]
        self._temperatures.pop()
        for noise in (self._base, *((self._drafter, self._dice) if self._throws_dice else ())):
            noise.retire(row)

    def at(self, lengths: list[int], num_depths: int) -> StepNoise:
        """For rows that hold `lengths` tokens, the root not counted."""
        if not any(self._temperatures):
            return StepNoise(None, None, None)
        first = [length + 1 for length in lengths]
        drawing_BPV = self._base.at(first, num_depths)
        if self._throws_dice:
            ranking_BPV = self._without_greedy(self._drafter.at(first, num_depths))
            return StepNoise(drawing_BPV, ranking_BPV, self._dice.at(first, num_depths))
        return StepNoise(drawing_BPV, self._without_greedy(drawing_BPV) if self._coupled else None, None)

    def _without_greedy(self, noise_BPV: Tensor) -> Tensor:
        """What is drawn without noise is ranked without."""
        if all(self._temperatures):
            return noise_BPV
        is_drawn_B = torch.tensor([t > 0 for t in self._temperatures], device=self._device)
        return noise_BPV * is_drawn_B[:, None, None]
