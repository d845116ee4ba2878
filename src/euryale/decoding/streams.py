"""Which randomness does each part of a step get?

The base draws with the noise of (seed, position, token). Coupled drafters rank their candidates with the same noise,
which guesses the draw itself; uncoupled ones rank plainly. Rule `rejection` needs three streams that know nothing of
each other: the drafter's draws, the dice, and the base's draw.

Letters: B batch, R rows of a shape (1 or B), P depths, N nodes, V vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from euryale.decoding.accept import AcceptConfig
from euryale.decoding.noise import KeyedNoise, stream_seed


class StepNoise(NamedTuple):
    """The noise of the positions after the root's, nearest first; all None at T = 0."""

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
        self,
        num_rows: int,
        temperature: float,
        rule: AcceptConfig,
        vocab_size: int,
        num_nodes: int,
        device: torch.device,
    ) -> None:
        self.draws = temperature > 0 and rule.name == "rejection"  # whether the drafter is asked for draws
        self._coupled = rule.coupled
        self._base = KeyedNoise(num_rows, vocab_size, device) if temperature > 0 else None
        if self.draws:
            self._drafter = KeyedNoise(num_rows, vocab_size, device)
            self._dice = KeyedNoise(num_rows, num_nodes, device)

    def admit(self, row: int, seeds: Sequence[int]) -> None:
        """New rows live from `row` on: in the place of rows that ended, or behind the last."""
        if self._base is not None:
            self._base.admit(row, seeds)
        if self.draws:
            self._drafter.admit(row, [stream_seed(seed, 1) for seed in seeds])
            self._dice.admit(row, [stream_seed(seed, 2) for seed in seeds])

    def retire(self, row: int) -> None:
        """The row has ended; the last one goes on in its place."""
        if self._base is not None:
            self._base.retire(row)
        if self.draws:
            self._drafter.retire(row)
            self._dice.retire(row)

    def at(self, lengths: list[int], num_depths: int) -> StepNoise:
        """For rows that hold `lengths` tokens, the root not counted."""
        if self._base is None:
            return StepNoise(None, None, None)
        first = [length + 1 for length in lengths]
        drawing_BPV = self._base.at(first, num_depths)
        if self.draws:
            return StepNoise(drawing_BPV, self._drafter.at(first, num_depths), self._dice.at(first, num_depths))
        return StepNoise(drawing_BPV, drawing_BPV if self._coupled else None, None)
