"""Which keys the queries of one pass see, and in which places: made once a pass, used by every layer.

A pass is cut into pieces. Rows of different lengths, and the nodes of a long prompt, go to pieces of their own, each
with its own number of columns; so a piece's temporaries stay small.

Letters: see exact_attention.py.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from euryale.base.attention_plan import STEP, AttentionPlan, Blocks, Heads, Piece, Tail, by_node, width_of
from euryale.base.tree_order import tree_order

_SCORES, _STATES = 1 << 19, 1 << 18  # of a piece, where a pass can be cut: what a core's cache holds (2 MB, 1 MB)
_CHAIN_NODES = 64  # of a piece of a prompt


class Planner:
    """Plans of passes over one model's layers."""

    def __init__(self, heads: Heads, blocks: Blocks, dtype: torch.dtype) -> None:
        """dtype: of queries, keys and values."""
        self._heads, self._blocks, self._dtype = heads, blocks, dtype

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
        size = self._rows_a_piece(N, width_of(lengths[0] + N)) if is_even else 1
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

    def _rows_a_piece(self, num_nodes: int, width: int) -> int:
        G, R, E, _ = self._heads
        return max(1, min(_SCORES // (G * R * num_nodes * width), _STATES // (G * E * width)))

    def _single(self, lengths: Sequence[int], out_BNGRE: Tensor) -> Iterator[Piece]:
        """One query a row: it sees every slot of its row."""
        G, size = self._heads.num_kv, self._rows_a_piece(1, width_of(max(lengths) + 1))
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
        N, R, keys = len(seen_NN), self._heads.repeats, self._blocks.keys
        width, start = width_of(length + N), length // STEP * STEP
        edge = -(-length // keys) * keys  # the first end of a block that is not before the nodes
        piece = self._piece(rows, slice(0, N), width, _hidden_from(length + N, width), length + 1, out_BNGRE)
        X, M, _ = piece.scores_XMW.shape
        order = tree_order(seen_NN, length - start, width - start, edge - start)
        shape = (X, N, R, width - start)
        later_XMC = piece.scores_XMW.new_zeros(X, 0 if order.later_places is None else M, shape[3])
        piece.tail = Tail(
            start,
            piece.scores_XMW[:, : N * R, start:].view(shape),
            order.columns.expand(shape),
            order.places.expand(shape),
            None if order.later_places is None else order.later_places.expand(shape),
            later_XMC,
            later_XMC if order.later_places is None else later_XMC[:, : N * R].view(shape),
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
        query_XME = torch.zeros(B * G, M, E, dtype=torch.float32)
        scores_XMW, sums_XME = query_XME.new_empty(B * G, M, width), torch.empty_like(query_XME)
        first, more = self._cut(num_keys, width)
        return Piece(
            rows,
            nodes,
            width,
            mask,
            first,
            more,
            query_XME,
            by_node(query_XME, N, G, R),
            scores_XMW,
            sums_XME,
            by_node(sums_XME, N, G, R),
            out_BNGRE,
            None if self._dtype == torch.float32 else query_XME.new_empty(B * G, width, E),
        )

    def _cut(self, num_keys: int, width: int) -> tuple[int, list[tuple[int, int]]]:
        """Keys of the first block, and the further ones; the last one takes the columns after it too."""
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


def _is_chain(seen_NN: Tensor) -> bool:
    """Parents come before children, so no tree has as many ancestors."""
    return 2 * int(seen_NN.numpy().sum()) == len(seen_NN) * (len(seen_NN) + 1)


def _hidden_from(num_keys: int, width: int) -> Tensor:
    mask = torch.zeros(1, 1, width, dtype=torch.float32)
    mask[..., num_keys:] = -torch.inf
    return mask


def _as_mask(is_hidden: Tensor) -> Tensor:
    return torch.zeros(is_hidden.shape, dtype=torch.float32).masked_fill_(is_hidden, -torch.inf)
