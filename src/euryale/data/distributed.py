"""One stream of batches for several processes: none is lost or seen by two.

Every process packs the whole stream and takes each N-th batch of it. A step of N processes is then made of the very
batches that one process takes with N times the gradient accumulation, the cursor is the same in all of them, and a run
goes on with another number of processes where it stopped. Text that the base wrote is token ids already, and packing
those is cheap compared with a pass of the base, so that reading everything everywhere costs little.
"""

import logging
from collections.abc import Iterator
from typing import Any

from euryale.data.batches import Batch, BatchStream

logger = logging.getLogger(__name__)


class Dealt:
    """The batches of process `rank` among `world_size`: one of each round of `world_size` batches.

    What it returns has the type of the stream's batches; the stream must not end.
    """

    def __init__(self, stream: BatchStream, rank: int, world_size: int) -> None:
        assert 0 <= rank < world_size, (rank, world_size)
        self._stream = stream
        self._rank = rank
        self._world_size = world_size
        self._is_told = False
        self.origins: list[str] = []  # where the rows of the last batch came from

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        epoch = self._stream.epoch
        dealt, origins = [], []
        for _ in range(self._world_size):
            dealt.append(next(self._stream))
            origins.append(self._stream.origins)
        if self._stream.epoch > epoch + 1 and not self._is_told:
            self._is_told = True
            logger.warning(
                "one step of %d processes reads all of the data %d times over: it is too little to share. "
                "Start fewer processes, or give more data",
                self._world_size,
                self._stream.epoch - epoch,
            )
        self.origins = origins[self._rank]
        return dealt[self._rank]

    def state_dict(self) -> dict[str, Any]:
        """The stream's cursor after the whole round: the same in every process."""
        return self._stream.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._stream.load_state_dict(state)
