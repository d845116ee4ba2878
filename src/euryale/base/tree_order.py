"""Where the places of a node's text lie among the columns of a tree's pass.

Letters: N nodes, C columns of the tail.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor


class TreeOrder(NamedTuple):
    """Indices [1, N, 1, C] for each node.

    columns: the column that each place reads. places: the place that each column reads, where that belongs to the
    first block of the tail. later_places: where it belongs to the next block; None: no place does.
    """

    columns: Tensor
    places: Tensor
    later_places: Tensor | None


def tree_order(seen_NN: Tensor, offset: int, C: int, edge: int) -> TreeOrder:
    """The order of nodes [N, N] (True where a node sees a node; parents come before children).

    offset: committed slots before the nodes, from the tail's start. C: columns of the tail, of which the last is
    hidden from every query, so that the last place has a weight of 0. edge: the place at which a block ends.
    """
    return _kept_order(seen_NN.numpy().tobytes(), len(seen_NN), offset, C, min(edge, C))


@lru_cache(maxsize=128)  # a fixed tree comes back with the same offset every 16 tokens
def _kept_order(seen: bytes, N: int, offset: int, C: int, edge: int) -> TreeOrder:
    seen_NN = torch.frombuffer(bytearray(seen), dtype=torch.bool).view(N, N)
    depths_N1 = seen_NN.sum(-1, keepdim=True) - 1
    ancestors_first_NN = seen_NN.logical_not().to(torch.uint8).sort(dim=-1, stable=True).indices
    ranks_NN = seen_NN.cumsum(-1) - 1
    order_NC, place_NC = torch.full((2, N, C), C - 1).unbind(0)
    order_NC[:, :offset] = place_NC[:, :offset] = torch.arange(offset)
    order_NC[:, offset : offset + N] = (ancestors_first_NN + offset).where(torch.arange(N) <= depths_N1, C - 1)
    place_NC[:, offset : offset + N] = (ranks_NN + offset).where(seen_NN, C - 1)
    later = None
    if 0 < edge <= offset + int(depths_N1.max()):
        is_first_NC = place_NC < edge
        place_NC, later_NC = place_NC.where(is_first_NC, C - 1), place_NC.masked_fill(is_first_NC, C - 1)
        later = later_NC[None, :, None]
    return TreeOrder(order_NC[None, :, None], place_NC[None, :, None], later)
