"""Blocks of random tokens, each one document without a gap: for memory, time and trials.

Every token is a target, so that as much is kept for the backward pass as a batch of this size can ask for. It stands in
for batches.BatchStream, and has no cursor worth keeping.
"""

import torch
from torch import Tensor

from euryale.data.batches import Batch


class RandomRows:
    """Batches without end of random tokens out of `tokens_V`."""

    def __init__(self, tokens_V: Tensor, batch_size: int, block_size: int, seed: int) -> None:
        self.origins = [f"random tokens, seed {seed}"]
        self._tokens_V = tokens_V
        self._shape = (batch_size, block_size)
        self._generator = torch.Generator().manual_seed(seed)

    def __next__(self) -> Batch:
        chosen_BT = torch.randint(len(self._tokens_V), self._shape, generator=self._generator)
        positions_BT = torch.arange(self._shape[1]).expand(self._shape).contiguous()
        is_target_BT = torch.ones(self._shape, dtype=torch.bool)
        return Batch(self._tokens_V[chosen_BT], is_target_BT, positions_BT, torch.zeros_like(positions_BT))

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Does nothing: random batches have no cursor."""
