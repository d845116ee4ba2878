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


@dataclass
class Piece:
    """Some rows and nodes of a pass, with buffers that all layers share."""

    rows: slice
    nodes: slice
    heads: tuple[int, int]  # G, R
    width: int
    mask: Tensor  # to be added to the scores, [1 or B G, 1 or M, W]
    blocks: list[tuple[int, int]]  # columns of values, added one block after the other
    query_XME: Tensor  # [B G, M, E], padded rows are zeros
    query_BNGRE: Tensor  # the same without the padded rows
    out_BNGRE: Tensor  # of the plan's `out`
    order_XNRC: Tensor | None = None  # which column of the tail each place reads; None: places are columns
    places_XNRC: Sequence[Tensor] = ()  # the place that each column reads, for each block that has places in the tail
    tail_start: int = 0
    slots_W: Tensor | None = None  # where the keys are, if not in the first slots

    def tail(self, scores_XMW: Tensor, start: int | None = None) -> Tensor:
        """[B G, N, R, C]: the columns from the tail's start on, without the padded rows."""
        N, R = self.query_BNGRE.shape[1], self.heads[1]
        start = self.tail_start if start is None else start
        return scores_XMW[:, : N * R, start:].unflatten(1, (N, R))

    def unpadded(self, sums_XME: Tensor) -> Tensor:
        """[B, N, G, R, E] of [B G, M, E]."""
        return _by_node(sums_XME, self.query_BNGRE.shape[1], *self.heads)


class AttentionPlan(NamedTuple):
    pieces: list[Piece]
    width: int  # slots that keys and values must have
    scaling: float
    out: Tensor  # [padded rows, H E]


def _by_node(x_XME: Tensor, N: int, G: int, R: int) -> Tensor:
    return x_XME[:, : N * R].unflatten(1, (N, R)).unflatten(0, (-1, G)).transpose(1, 2)


def width_of(bound: int) -> int:
    """Columns for this many slots: a multiple of 16, and at least one that is hidden from every query."""
    return (bound + STEP) // STEP * STEP


class Planner:
    """Plans of passes over one model's layers."""

    def __init__(self, heads: Heads, blocks: Blocks, dtype: torch.dtype) -> None:
        """dtype: of the queries."""
        self._heads, self._blocks, self._dtype = heads, blocks, dtype
        self._seen_NN = torch.empty(0)
        self._orders: dict[tuple[int, int, int], tuple[Tensor, list[Tensor]]] = {}  # of the tree `seen`

    def plan(self, nodes_RNN: Tensor | None, lengths: Sequence[int], num_nodes: int, num_rows: int) -> AttentionPlan:
        """The plan of one pass.

        nodes_RNN: True where a node sees a node, [1 or B, N, N]; None: each sees those before it. lengths: committed
        slots of each row. num_rows: those of the pass, padding included.
        """
        G, R, E, scaling = self._heads
        out = torch.zeros(num_rows, G * R * E, dtype=self._dtype)
        out_BNGRE = out[: len(lengths) * num_nodes].view(len(lengths), num_nodes, G, R, E)
        pieces = list(self._pieces(nodes_RNN, lengths, num_nodes, out_BNGRE))
        return AttentionPlan(pieces, width_of(max(lengths) + num_nodes), scaling, out)

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
        return AttentionPlan(pieces, width, scaling, out)

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
        N, keys = len(seen_NN), self._blocks.keys
        width, start = width_of(length + N), length // STEP * STEP
        edge = -(-length // keys) * keys  # the first end of a block that is not before the nodes
        order_1N1C, places = self._order(seen_NN, length - start, width - start, edge - start)
        piece = self._piece(rows, slice(0, N), width, _hidden_from(length + N, width), length, out_BNGRE)
        begin = length // keys * keys
        whole = [(at, at + keys) for at in range(0, begin, keys)]
        piece.blocks = [*whole, (begin, min(width, begin + self._blocks.most))]
        shape = (len(piece.query_XME), N, self._heads.repeats, width - start)
        piece.order_XNRC = order_1N1C.expand(shape)
        piece.places_XNRC = [place_1N1C.expand(shape) for place_1N1C in places]
        piece.tail_start = start
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
        stop = -(-num_keys // STEP) * STEP
        blocks = [(at, min(stop, at + self._blocks.keys)) for at in range(0, stop, self._blocks.keys)]
        return Piece(rows, nodes, (G, R), width, mask, blocks, query_XME, _by_node(query_XME, N, G, R), out_BNGRE)

    def _of_rows(self, mask_NW: Tensor, R: int) -> Tensor:
        """[1, M, W]: each node's line for each of its rows of a product."""
        mask_MW = mask_NW.repeat_interleave(R, 0)
        padding = -len(mask_MW) % self._blocks.unit
        return torch.cat([mask_MW, mask_MW.new_zeros(padding, mask_MW.shape[1])])[None] if padding else mask_MW[None]

    def _order(self, seen_NN: Tensor, offset: int, C: int, edge: int) -> tuple[Tensor, list[Tensor]]:
        """For each place of the tail the column that it reads, and for each column the place: [1, N, 1, C] each.

        offset: committed slots in the tail. edge: the place at which a block ends, from the tail's start. The last
        column is hidden from every query, and the last place has a weight of 0.
        """
        if not torch.equal(seen_NN, self._seen_NN):
            self._seen_NN, self._orders = seen_NN.clone(), {}
        key = (offset, C, min(edge, C))
        if key not in self._orders:
            self._orders[key] = _order_of(seen_NN, *key)
        return self._orders[key]


def _order_of(seen_NN: Tensor, offset: int, C: int, edge: int) -> tuple[Tensor, list[Tensor]]:
    N = len(seen_NN)
    committed = torch.arange(offset).expand(N, -1)
    last = torch.full((N, C), C - 1)
    depths_N1 = seen_NN.sum(-1, keepdim=True) - 1
    ancestors_first_NN = seen_NN.logical_not().to(torch.uint8).sort(dim=-1, stable=True).indices
    ranks_NN = seen_NN.cumsum(-1) - 1
    order_NC, place_NC = last.clone(), last.clone()
    order_NC[:, :offset] = place_NC[:, :offset] = committed
    is_path_NN = torch.arange(N) <= depths_N1
    order_NC[:, offset : offset + N] = torch.where(is_path_NN, ancestors_first_NN + offset, C - 1)
    place_NC[:, offset : offset + N] = torch.where(seen_NN, ranks_NN + offset, C - 1)
    parts = [place_NC]
    if edge < offset + int(depths_N1.max()) + 1 and edge > 0:
        parts = [torch.where(place_NC < edge, place_NC, C - 1), torch.where(place_NC < edge, C - 1, place_NC)]
    return order_NC[None, :, None], [part[None, :, None] for part in parts]


def _is_chain(seen_NN: Tensor) -> bool:
    return torch.equal(seen_NN, torch.ones_like(seen_NN).tril())


def _hidden_from(num_keys: int, width: int) -> Tensor:
    mask = torch.zeros(1, 1, width)
    mask[..., num_keys:] = -torch.inf
    return mask


def _as_mask(is_hidden: Tensor) -> Tensor:
    return torch.zeros(is_hidden.shape).masked_fill_(is_hidden, -torch.inf)
