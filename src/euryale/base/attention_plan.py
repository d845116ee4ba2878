"""What exact_attention must know of one pass, and the buffers that all layers share.

Letters: see exact_attention.py; X = B G.
"""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

STEP = 16  # a width is a multiple


class Blocks(NamedTuple):
    """What a product adds in one run, on this machine.

    unit: rows are padded to a multiple. keys: of a block. most: keys that a product may add, zeros included.
    """

    unit: int
    keys: int
    most: int


class Heads(NamedTuple):
    """Key/value heads G, query heads of each R, width E, factor of the scores."""

    num_kv: int
    repeats: int
    width: int
    scaling: float


class Tail(NamedTuple):
    """The last columns of a tree's pass: where a node's place in its text is not its column."""

    start: int
    scores_XNRC: Tensor  # of the scores, without padded rows
    columns_XNRC: Tensor  # these three: see TreeOrder
    places_XNRC: Tensor
    later_places_XNRC: Tensor | None
    later_XMC: Tensor  # weights of the next block
    later_XNRC: Tensor  # the same without padded rows


@dataclass
class Piece:
    """Some rows and nodes of a pass, with buffers that all layers share; X = B G."""

    rows: slice
    nodes: slice
    width: int
    mask: Tensor  # to be added to the scores, [1 or X, 1 or M, W]
    first_keys: int  # of the first block
    more_blocks: list[tuple[int, int]]  # further columns, added one block after the other
    query_XME: Tensor  # padded rows are zeros
    query_BNGRE: Tensor  # the same without padded rows
    scores_XMW: Tensor
    sums_XME: Tensor
    sums_BNGRE: Tensor
    out_BNGRE: Tensor  # of the plan's `out`
    states_XWE: Tensor | None  # keys, then values, in float32; None: they are
    tail: Tail | None = None  # None: places are columns
    slots_W: Tensor | None = None  # where the keys are, if not in the first slots

    def in_float32(self, states_BGWE: Tensor) -> Tensor:
        """[X, W, E]; the next call overwrites it. A copy that is read at once is quicker than wide keys in memory."""
        if self.states_XWE is None:
            return states_BGWE.flatten(0, 1)
        self.states_XWE.view(states_BGWE.shape).copy_(states_BGWE)
        return self.states_XWE


class AttentionPlan(NamedTuple):
    """The pieces of one pass.

    width: slots that keys and values must have. out: [rows of the pass, H E], zeros where no token is.
    """

    pieces: list[Piece]
    width: int
    heads: tuple[int, int]  # G, R
    scaling: float
    out: Tensor

    @property
    def is_whole(self) -> bool:
        """Whether one piece is the whole pass."""
        return len(self.pieces) == 1 and self.pieces[0].slots_W is None


def by_node(x_XME: Tensor, N: int, G: int, R: int) -> Tensor:
    """[B, N, G, R, E], without padded rows."""
    X, _, E = x_XME.shape
    return x_XME[:, : N * R].view(X // G, G, N, R, E).transpose(1, 2)


def width_of(bound: int) -> int:
    """Columns for this many slots: a multiple of 16, and at least one that is hidden from every query."""
    return (bound + STEP) // STEP * STEP
