"""Attention on a CPU whose sums do not depend on what else is in the pass: a tree's node gets plain decoding's bits.

A node's keys lie in other columns than the same token's keys in plain decoding, so a plain attention adds the same
numbers in another order. Three facts make the sums equal, and attention_proof.py proves them on this machine:
- a score, the product of a query and a key, does not depend on the rows and columns around it;
- softmax over a width that is a multiple of 16 depends on the place of each score alone, and a hidden score adds 0;
- a product of weights and values adds one key after the other, so a weight of 0 between two others changes nothing.
So scores are computed for all columns at once, those of a node's path are moved to their places in its text, and the
weights are moved back before they meet the values. Keys are added in blocks of positions, because a product adds only
so many in one run. Plain decoding needs no move. All is float32, whatever the base's dtype.

Letters: B batch, N nodes, H query heads, G key/value heads, R = H / G, E head width, S slots, W columns, M rows of a
product, C columns of the tail, which begins at the last multiple of 16 before the nodes.
"""

import torch
from torch import Tensor

from euryale.base.attention_plan import AttentionPlan, Piece, Tail


def exact_attention(plan: AttentionPlan, query_BNHE: Tensor, keys_BGSE: Tensor, values_BGSE: Tensor) -> Tensor:
    """Scaled dot-product attention: [rows of the pass, H E] in the dtype of the queries, overwritten by the next call.

    Keys and values have plan.width slots.
    """
    B, N, _, E = query_BNHE.shape
    query_BNGRE = query_BNHE.view(B, N, *plan.heads, E)
    if plan.is_whole:
        _fill(plan.pieces[0], query_BNGRE, keys_BGSE, values_BGSE, plan.scaling)
        return plan.out
    for piece in plan.pieces:
        keys, values = keys_BGSE[piece.rows], values_BGSE[piece.rows]
        if piece.slots_W is not None:
            keys, values = keys.index_select(2, piece.slots_W), values.index_select(2, piece.slots_W)
        keys, values = keys[:, :, : piece.width], values[:, :, : piece.width]
        _fill(piece, query_BNGRE[piece.rows, piece.nodes], keys, values, plan.scaling)
    return plan.out


def _fill(piece: Piece, query_BNGRE: Tensor, keys_BGWE: Tensor, values_BGWE: Tensor, scaling: float) -> None:
    """Fills the piece's part of the plan's `out`."""
    weights_XMW, sums_XME, tail = piece.scores_XMW, piece.sums_XME, piece.tail
    piece.query_BNGRE.copy_(query_BNGRE)
    keys_XWE = piece.in_float32(keys_BGWE)
    torch.baddbmm(piece.mask, piece.query_XME, keys_XWE.transpose(1, 2), alpha=scaling, out=weights_XMW)
    if tail is not None:
        tail.scores_XNRC.copy_(tail.scores_XNRC.gather(3, tail.columns_XNRC))
    torch.softmax(weights_XMW, -1, out=weights_XMW)
    later = _move_back(tail) if tail is not None else None
    values_XWE = piece.in_float32(values_BGWE)
    if not piece.more_blocks:
        torch.bmm(weights_XMW, values_XWE, out=sums_XME)
    else:
        first = piece.first_keys
        torch.bmm(weights_XMW[..., :first], values_XWE[:, :first], out=sums_XME)
        for start, stop in piece.more_blocks:
            sums_XME.baddbmm_(weights_XMW[..., start:stop], values_XWE[:, start:stop])
    if tail is not None and later is not None:
        tail.later_XNRC.copy_(later)
        sums_XME.baddbmm_(tail.later_XMC, values_XWE[:, tail.start :])
    piece.out_BNGRE.copy_(piece.sums_BNGRE)


def _move_back(tail: Tail) -> Tensor | None:
    """Puts the weights of a path into the columns of its nodes; gives back those that belong to a later block."""
    weights, later = tail.scores_XNRC, tail.later_places_XNRC
    moved = None if later is None else weights.gather(3, later)
    weights.copy_(weights.gather(3, tail.places_XNRC))
    return moved
