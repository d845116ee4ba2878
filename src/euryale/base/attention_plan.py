"""Which keys the queries of one pass see, and in which places: made once a pass, used by every layer.

A pass is cut into pieces. Rows of different lengths, and the nodes of a long prompt, go to pieces of their own, each
with its own number of columns; so a piece's temporaries stay small.

Letters: see exact_attention.py; P places of a text.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

STEP = 16  # a width is a multiple
_LARGEST = 1 << 19  # scores of a piece, where a pass can be cut
_CHAIN_NODES = 64  # of a piece of a prompt


_Order = tuple[Tensor, Tensor, Tensor | None]


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
    order_XNRC: Tensor  # the column that each place reads
    places_XNRC: tuple[Tensor, Tensor | None]  # the place that each column reads: of the first block, of the next
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
    tail: Tail | None = None  # None: places are columns
    slots_W: Tensor | None = None  # where the keys are, if not in the first slots


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


def _by_node(x_XME: Tensor, N: int, G: int, R: int) -> Tensor:
    """[B, N, G, R, E], without padded rows."""
    X, _, E = x_XME.shape
    return x_XME[:, : N * R].view(X // G, G, N, R, E).transpose(1, 2)


def width_of(bound: int) -> int:
    """Columns for this many slots: a multiple of 16, and at least one that is hidden from every query."""
    return (bound + STEP) // STEP * STEP


class Planner:
    """Plans of passes over one model's layers."""

    def __init__(self, heads: Heads, blocks: Blocks, dtype: torch.dtype) -> None:
        """dtype: of the queries."""
        self._heads, self._blocks, self._dtype = heads, blocks, dtype
        self._kept: tuple[Tensor, dict[tuple[int, int, int], _Order]] = (torch.empty(0), {})  # of the last tree

    def plan(self, nodes_RNN: Tensor | None, lengths: Sequence[int], num_nodes: int, num_rows: int) -> AttentionPlan:
        """The plan of one pass.

        nodes_RNN: True where a node sees a node, [1 or B, N, N]; None: each sees those before it. lengths: committed
        slots of each row. num_rows: those of the pass, padding included.
        """
        G, R, E, scaling = self._heads
        out = torch.zeros(num_rows, G * R * E, dtype=self._dtype)
        out_BNGRE = out[: len(lengths) * num_nodes].view(len(lengths), num_nodes, G, R, E)
        pieces = list(self._pieces(nodes_RNN, lengths, num_nodes, out_BNGRE))
        return AttentionPlan(pieces, width_of(max(lengths) + num_nodes), (G, R), scaling, out)

    def masked(self, mask_B1NS: Tensor, num_batch: int, num_rows: int) -> AttentionPlan:
        """The plan of a pass under any mask, [1 or B, 1, N, S]: sums are in the order of the slots, so no promise."""
        G, R, E, scaling = self._heads
        N, S = mask_B1NS.shape[2:]
        width = width_of(S)
        is_hidden_BNW = torch.ones(num_batch, N, width, dtype=torch.bool)
        is_hidden_BNW[..., :S] = mask_B1NS[:, 0] != 0
        out = torch.zeros(num_rows, G * R * E, dtype=self._dtype)
        out_BNGRE = out[: num_batch * N].view(num_batch, N, G, R, E)
        pieces = [
            self._piece(
                slice(row, row + 1),
                slice(0, N),
                width,
                self._of_rows(_as_mask(is_hidden_BNW[row]), R),
                S,
                out_BNGRE[row : row + 1],
            )
            for row in range(num_batch)
        ]
        return AttentionPlan(pieces, width, (G, R), scaling, out)

    def _pieces(self, nodes_RNN: Tensor | None, lengths: Sequence[int], N: int, out_BNGRE: Tensor) -> Iterator[Piece]:
        B = len(lengths)
        if N == 1:
            yield from self._single(lengths, out_BNGRE)
            return
        is_even = min(lengths) == max(lengths) and (nodes_RNN is None or len(nodes_RNN) == 1)
        most = max(1, _LARGEST // (self._heads.num_kv * self._heads.repeats * N * width_of(lengths[0] + N)))
        size = min(B, most) if is_even else 1
        for row in range(0, B, size):
            rows = slice(row, min(B, row + size))
            seen_NN = None if nodes_RNN is None else nodes_RNN[0 if len(nodes_RNN) == 1 else row]
            if seen_NN is None or _is_chain(seen_NN):
                for first in range(0, N, _CHAIN_NODES):
                    nodes = slice(first, min(N, first + _CHAIN_NODES))
                    yield self._chain(rows, nodes, lengths[row] + first, out_BNGRE[rows, nodes])
            elif self._blocks.most - self._blocks.keys >= N:
                yield self._tree(rows, lengths[row], seen_NN, out_BNGRE[rows])
            else:
                for node in range(N):
                    yield self._lone(rows, node, lengths[row], seen_NN, out_BNGRE[rows, node : node + 1])

    def _single(self, lengths: Sequence[int], out_BNGRE: Tensor) -> Iterator[Piece]:
        """One query a row: it sees every slot of its row."""
        G, R, _, _ = self._heads
        size = max(1, _LARGEST // (G * max(R, self._blocks.unit) * width_of(max(lengths) + 1)))
        for row in range(0, len(lengths), size):
            of_rows = lengths[row : row + size]
            rows, width = slice(row, row + len(of_rows)), width_of(max(of_rows) + 1)
            if min(of_rows) == max(of_rows):
                mask = _hidden_from(of_rows[0] + 1, width)
            else:
                is_hidden_BW = torch.arange(width) > torch.tensor(of_rows)[:, None]
                mask = _as_mask(is_hidden_BW).repeat_interleave(G, 0)[:, None]
            yield self._piece(rows, slice(0, 1), width, mask, max(of_rows) + 1, out_BNGRE[rows])

    def _chain(self, rows: slice, nodes: slice, length: int, out_BNGRE: Tensor) -> Piece:
        """Nodes that each see all before them: the columns are the places."""
        N, R = nodes.stop - nodes.start, self._heads.repeats
        width = width_of(length + N)
        is_hidden_NW = torch.arange(width) > length + torch.arange(N)[:, None]
        mask = self._of_rows(_as_mask(is_hidden_NW), R)
        return self._piece(rows, nodes, width, mask, length + N, out_BNGRE)

    def _tree(self, rows: slice, length: int, seen_NN: Tensor, out_BNGRE: Tensor) -> Piece:
        N, R, keys, most = len(seen_NN), self._heads.repeats, self._blocks.keys, self._blocks.most
        width, start = width_of(length + N), length // STEP * STEP
        edge = -(-length // keys) * keys  # the first end of a block that is not before the nodes
        piece = self._piece(rows, slice(0, N), width, _hidden_from(length + N, width), length, out_BNGRE)
        begin = length // keys * keys
        stop = min(width, begin + most)
        if begin:
            piece.first_keys = keys
            piece.more_blocks = [*((at, at + keys) for at in range(keys, begin, keys)), (begin, stop)]
        else:
            piece.first_keys, piece.more_blocks = stop, []
        X, M, _ = piece.scores_XMW.shape
        order, first, later = self._order(seen_NN, length - start, width - start, edge - start)
        shape = (X, N, R, width - start)
        later_XMC = torch.zeros(X, M if later is not None else 0, shape[3])
        piece.tail = Tail(
            start,
            piece.scores_XMW[:, : N * R, start:].unflatten(1, (N, R)),
            order.expand(shape),
            (first.expand(shape), None if later is None else later.expand(shape)),
            later_XMC,
            later_XMC[:, : N * R].unflatten(1, (N, R)) if later is not None else later_XMC,
        )
        return piece

    def _lone(self, rows: slice, node: int, length: int, seen_NN: Tensor, out_BNGRE: Tensor) -> Piece:
        """One node of a tree that is too large for a product: its keys are gathered."""
        path_P = seen_NN[node].nonzero()[:, 0] + length
        num = length + len(path_P)
        width = width_of(num)
        piece = self._piece(rows, slice(node, node + 1), width, _hidden_from(num, width), num, out_BNGRE)
        piece.slots_W = torch.cat([torch.arange(length), path_P, path_P[-1:].expand(width - num)])
        return piece

    def _piece(self, rows: slice, nodes: slice, width: int, mask: Tensor, num_keys: int, out_BNGRE: Tensor) -> Piece:
        G, R, E, _ = self._heads
        B, N = out_BNGRE.shape[:2]
        M = -(-N * R // self._blocks.unit) * self._blocks.unit
        query_XME = torch.zeros(B * G, M, E)
        scores_XMW, sums_XME = torch.empty(B * G, M, width), torch.empty(B * G, M, E)
        first, more = self._cut(num_keys, width)
        return Piece(
            rows,
            nodes,
            width,
            mask,
            first,
            more,
            query_XME,
            _by_node(query_XME, N, G, R),
            scores_XMW,
            sums_XME,
            _by_node(sums_XME, N, G, R),
            out_BNGRE,
        )

    def _cut(self, num_keys: int, width: int) -> tuple[int, list[tuple[int, int]]]:
        """Keys of the first block, and the further ones; the last one takes the hidden columns after it too."""
        keys = self._blocks.keys
        starts = range(0, num_keys, keys)
        stops = [*starts[1:], width]
        (_, first), *more = zip(starts, stops, strict=True)
        return first, more

    def _of_rows(self, mask_NW: Tensor, R: int) -> Tensor:
        """[1, M, W]: each node's line for each of its rows of a product."""
        mask_MW = mask_NW.repeat_interleave(R, 0)
        padding = -len(mask_MW) % self._blocks.unit
        return torch.cat([mask_MW, mask_MW.new_zeros(padding, mask_MW.shape[1])])[None] if padding else mask_MW[None]

    def _order(self, seen_NN: Tensor, offset: int, C: int, edge: int) -> _Order:
        """_order_of, kept for the next pass of the same tree."""
        key = (offset, C, min(edge, C))
        tree_NN, orders = self._kept
        if not torch.equal(seen_NN, tree_NN):
            orders = {}
            self._kept = (seen_NN.clone(), orders)  # at once: another thread may decode too
        if key not in orders:
            orders[key] = _order_of(seen_NN, *key)
        return orders[key]


def _order_of(seen_NN: Tensor, offset: int, C: int, edge: int) -> _Order:
    """For each place of the tail the column that it reads; for each column the place that it reads, and the same for
    the block after. [1, N, 1, C] each.

    offset: committed slots in the tail. edge: the place at which a block ends, from the tail's start. The last column
    is hidden from every query, and the last place has a weight of 0.
    """
    N = len(seen_NN)
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
    return order_NC[None, :, None], place_NC[None, :, None], later


def _is_chain(seen_NN: Tensor) -> bool:
    return torch.equal(seen_NN, torch.ones_like(seen_NN).tril())


def _hidden_from(num_keys: int, width: int) -> Tensor:
    mask = torch.zeros(1, 1, width)
    mask[..., num_keys:] = -torch.inf
    return mask


def _as_mask(is_hidden: Tensor) -> Tensor:
    return torch.zeros(is_hidden.shape).masked_fill_(is_hidden, -torch.inf)
