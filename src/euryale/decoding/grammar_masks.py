"""The logits of a tree's nodes without the tokens that the grammars of their rows refuse.

Letters: B batch, N nodes, P parents, V vocabulary, M nodes of all rows that are masked.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from euryale.decoding.grammar import Allowed, GrammarState


def mask_nodes(
    scores_BNV: Tensor, tokens_BN: Tensor, parents_RN: Tensor, grammars: Sequence[GrammarState | None]
) -> Tensor:
    """Sets to -inf what may not follow each node; rows without a grammar stay as they are.

    Nodes that a grammar refuses, and nodes that end an answer, stay too: nothing is read of them.
    """
    if all(grammar is None for grammar in grammars):
        return scores_BNV
    tokens, parents = tokens_BN.tolist(), parents_RN.tolist()
    places: list[tuple[int, int]] = []
    masks: list[Allowed] = []
    for row, grammar in enumerate(grammars):
        if grammar is not None:
            allowed = grammar.after_nodes(tokens[row], parents[row % len(parents)])
            places += [(row, node) for node in allowed]
            masks += allowed.values()
    if not places:
        return scores_BNV
    allowed_MV = torch.from_numpy(np.stack(masks)).to(scores_BNV.device)
    index = torch.tensor(places, device=scores_BNV.device).unbind(1)
    return scores_BNV.index_put(index, scores_BNV[index].masked_fill(~allowed_MV, -math.inf))


def mask_next(scores_BPV: Tensor, ids: Tensor | None, grammars: Sequence[GrammarState | None]) -> Tensor:
    """Sets to -inf what may not follow the roots. ids: the tokens that the scores stand for; None: all."""
    rows = [row for row, grammar in enumerate(grammars) if grammar is not None]
    masks = [grammar.next() for grammar in grammars if grammar is not None]
    if not rows:
        return scores_BPV
    allowed_MV = torch.from_numpy(np.stack(masks)).to(scores_BPV.device)
    if ids is not None:
        allowed_MV = allowed_MV[:, ids]
    rows_M = torch.tensor(rows, device=scores_BPV.device)
    return scores_BPV.index_put((rows_M,), scores_BPV[rows_M].masked_fill(~allowed_MV[:, None], -math.inf))
