"""Attention on a CPU whose sums do not depend on what else is in the pass: a tree's node gets plain decoding's bits.

A node's keys lie in other columns than the same token's keys in plain decoding, so a plain attention adds the same
numbers in another order. Three facts make the sums equal, and `proven_blocks` proves them on this machine:
- a score, the product of a query and a key, does not depend on the rows and columns around it;
- softmax over a width that is a multiple of 16 depends on the place of each score alone, and a hidden score adds 0;
- a product of weights and values adds one key after the other, so a weight of 0 between two others changes nothing.
So scores are computed for all columns at once, those of a node's path are moved to their places in its text, and the
weights are moved back before they meet the values. Keys are added in blocks of positions, so that long texts are no
longer than what a product adds in one run. Plain decoding needs no move. All is float32, whatever the base's dtype.

Letters: B batch, N nodes, H query heads, G key/value heads, R = H / G, E head width, W columns, M rows of a product,
C columns of the tail, which begins at the last multiple of 16 before the nodes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from euryale.base.attention_plan import AttentionPlan, Piece


def exact_attention(plan: AttentionPlan, query_BNHE: Tensor, keys_BGSE: Tensor, values_BGSE: Tensor) -> Tensor:
    """Scaled dot-product attention: [padded rows, H E] in the dtype of the queries, valid until the next call.

    Keys and values are float32, and have at least `plan.width` slots.
    """
    for piece in plan.pieces:
        rows_BNGRE = query_BNHE[piece.rows, piece.nodes].unflatten(2, piece.heads)
        piece.query_BNGRE.copy_(rows_BNGRE)
        keys, values = keys_BGSE[piece.rows], values_BGSE[piece.rows]
        if piece.slots_W is not None:
            keys, values = keys.index_select(2, piece.slots_W), values.index_select(2, piece.slots_W)
        keys_XWE, values_XWE = keys[:, :, : piece.width].flatten(0, 1), values[:, :, : piece.width].flatten(0, 1)
        piece.out_BNGRE.copy_(piece.unpadded(_sums(piece, keys_XWE, values_XWE, plan.scaling)))
    return plan.out


def _sums(piece: Piece, keys_XWE: Tensor, values_XWE: Tensor, scaling: float) -> Tensor:
    """[B G, M, E]."""
    scores_XMW = torch.baddbmm(piece.mask, piece.query_XME, keys_XWE.transpose(1, 2), alpha=scaling)
    if piece.order_XNRC is not None:
        tail = piece.tail(scores_XMW)
        tail.copy_(tail.gather(3, piece.order_XNRC))
    weights_XMW = torch.softmax(scores_XMW, -1, out=scores_XMW)
    later: Sequence[Tensor] = ()
    if piece.order_XNRC is not None:
        tail = piece.tail(weights_XMW)
        first, *later = [tail.gather(3, index_XNRC) for index_XNRC in piece.places_XNRC]
        tail.copy_(first)
    (start, stop), *others = piece.blocks
    sums_XME = torch.bmm(weights_XMW[..., start:stop], values_XWE[:, start:stop])
    for start, stop in others:
        sums_XME.baddbmm_(weights_XMW[..., start:stop], values_XWE[:, start:stop])
    for tail in later:
        whole_XMC = torch.zeros_like(scores_XMW[..., piece.tail_start :])
        piece.tail(whole_XMC, 0).copy_(tail)
        sums_XME.baddbmm_(whole_XMC, values_XWE[:, piece.tail_start :])
    return sums_XME
