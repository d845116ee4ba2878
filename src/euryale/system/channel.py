"""Words of the first process to all others, which wait for the next one however long it takes.

Collectives of a base give up after a while (processes.PATIENCE), because a process that waits in the middle of a pass
has lost another one. A server without requests is silent for days, so its words travel in a group of their own: gloo's,
also where the base's sums go through NCCL, whose waiting processes keep a core busy.
"""

from datetime import timedelta

import torch.distributed

SILENCE = timedelta(days=365)  # the longest; torch knows no group that waits for ever


class Channel:
    """Made by all processes at the same point, after they were joined (processes.join)."""

    def __init__(self) -> None:
        self._group = torch.distributed.new_group(timeout=SILENCE, backend="gloo")

    def say(self, word: object) -> None:
        """In the first process. Raises RuntimeError where another one is gone."""
        torch.distributed.broadcast_object_list([word], src=0, group=self._group)

    def hear(self) -> object:
        """In the others: the next word. Raises RuntimeError where the first one is gone."""
        heard: list[object] = [None]
        torch.distributed.broadcast_object_list(heard, src=0, group=self._group)
        return heard[0]
