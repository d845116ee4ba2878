"""Speculative sampling over a tree: drafted tokens are accepted by chance, and the text keeps the base's distribution.

Speculative sampling (Leviathan et al. 2023; Chen et al. 2023): a token drawn from the drafter's q is taken with
probability min(1, p / q), p being the base's; if it is refused, what is written instead is drawn from max(0, p - q).
With several candidates, drawn from q without replacement (Jeon et al. 2024, arXiv 2402.14160; Sequoia, 2402.12374),
the same is tried with each in the order in which they were drawn: after a refusal p becomes max(0, p - q), q loses the
refused token, and both are normalised again. A candidate that was not drawn, but named with certainty, has q = 1.

Candidates in the order of their keys (log q + Gumbel noise) are such a draw without replacement. Their noise, the
uniform numbers below and the noise of the last draw are three streams of the same seed (random_streams.py), and a
position's are used once, at the step that decides it: so they are independent, and a seed gives the same text again.

Letters: B batch, N nodes, V vocabulary.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from euryale.decoding.drafters.interface import Draft


class Walk(NamedTuple):
    """Where the walk ended."""

    is_accepted_BN: Tensor  # bool: the nodes on the path, root included
    last_B: Tensor  # its last node
    next_B: Tensor  # the token that follows


def walk_by_rejection(draft: Draft, p_BNV: Tensor, uniform_BN: Tensor, noise_BNV: Tensor) -> Walk:
    """Tries the candidates of one node after another.

    p_BNV: the base's distribution of what follows each node. uniform_BN: uniform numbers. noise_BNV: Gumbel noise by
    which the token after the path is drawn. Nodes come in such an order that parents stand before their children and
    siblings in the order of their draw, so one pass over the nodes is the walk: a node is tried where its parent is
    the end of the path so far.
    """
    tokens_BN, shape = draft.tokens_BN, draft.shape
    rows_B = torch.arange(len(tokens_BN), device=tokens_BN.device)
    parents_BN = shape.parents_RN.expand_as(tokens_BN)
    last_B = torch.zeros_like(rows_B)
    left_BV = p_BNV[:, 0]  # p of the node at which the path ends, less what was refused there
    q_BNV = None if draft.log_q_BNV is None else draft.log_q_BNV.exp()
    q_BV = left_BV.new_empty(0) if q_BNV is None else q_BNV[:, 0]
    for node in range(1, tokens_BN.shape[1]):
        token_B1 = tokens_BN[:, node, None]
        is_tried_B = parents_BN[:, node] == last_B
        if draft.is_real_BN is not None:
            is_tried_B &= draft.is_real_BN[:, node]
        certain_BV = torch.zeros_like(left_BV).scatter_(1, token_B1, 1.0)
        drafted_BV = certain_BV if q_BNV is None else q_BV
        p_B, q_B = left_BV.gather(1, token_B1)[:, 0], drafted_BV.gather(1, token_B1)[:, 0]
        is_tried_B &= q_B.isfinite()  # heads that break draw from nothing: their candidates are left out
        is_taken_B = is_tried_B & (uniform_BN[:, node] * q_B < p_B)
        is_refused_B1 = (is_tried_B & ~is_taken_B)[:, None]
        left_BV = torch.where(is_refused_B1, _less(left_BV, drafted_BV, certain_BV), left_BV)
        left_BV = torch.where(is_taken_B[:, None], p_BNV[:, node], left_BV)
        if q_BNV is not None:
            q_BV = torch.where(is_refused_B1, _normalised(q_BV * (1 - certain_BV)), q_BV)
            q_BV = torch.where(is_taken_B[:, None], q_BNV[:, node], q_BV)
        last_B = torch.where(is_taken_B, node, last_B)
    next_B = (left_BV.log() + noise_BNV[rows_B, last_B]).argmax(-1)
    return Walk(shape.ancestors_RNN.expand(len(rows_B), -1, -1)[rows_B, last_B], last_B, next_B)


def _less(p_BV: Tensor, q_BV: Tensor, refused_BV: Tensor) -> Tensor:
    """max(0, p - q), normalised. Where p and q are equal but for rounding nothing is left: then p without the token."""
    left_BV = (p_BV - q_BV).clamp(min=0.0)
    is_nothing_B1 = left_BV.sum(-1, keepdim=True) <= 1e-7
    return _normalised(torch.where(is_nothing_B1, p_BV * (1 - refused_BV), left_BV))


def _normalised(p_BV: Tensor) -> Tensor:
    return p_BV / p_BV.sum(-1, keepdim=True).clamp(min=torch.finfo(p_BV.dtype).tiny)
