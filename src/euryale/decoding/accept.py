"""Which drafted tokens does the base agree with?

Rule `exact`: at every node the base names its own next token, the target: argmax(logits) at T = 0, else
argmax(logits / T + keyed Gumbel noise), after top-p. Walk down from the root while a child carries its parent's
target. That is lossless at any temperature: each emitted token is the one that plain decoding draws there, because
the noise belongs to (seed, position, token) and not to the tree.

Letters: B batch, N nodes, V vocabulary, P depths (root included).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from euryale.decoding.draft import Shape
from euryale.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn from logits. Temperature 0 is greedy and uses no randomness."""

    temperature: float = 0.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature < float("inf"):
            raise UserError(f"temperature={self.temperature} cannot be. Give 0 for greedy, or a positive number.")
        if not 0.0 < self.top_p <= 1.0:
            raise UserError(f"top_p={self.top_p} cannot be. Give a number above 0 and at most 1.")


class Accepted(NamedTuple):
    """What a walk found."""

    is_accepted_BN: Tensor  # bool: the nodes on the accepted path, root included; ascending = from root to leaf
    targets_BN: Tensor  # the base's own next token at every node


def find_targets(logits_BNV: Tensor, sampling: Sampling, noise_BNV: Tensor | None) -> Tensor:
    """The base's own next token at every node, [B, N]. Ties go to the lowest id.

    noise_BNV is the keyed noise of the position that the token would take; None at T = 0.
    """
    if sampling.temperature == 0.0:
        return logits_BNV.argmax(-1)
    assert noise_BNV is not None, "sampling needs noise"
    scores_BNV = logits_BNV.float() / sampling.temperature
    if sampling.top_p < 1.0:
        scores_BNV = keep_top_p(scores_BNV, sampling.top_p)
    return (scores_BNV + noise_BNV).argmax(-1)


def keep_top_p(scores_xV: Tensor, top_p: float) -> Tensor:
    """Sets to -inf all but the smallest set of likeliest tokens whose share reaches top_p (Holtzman et al. 2020)."""
    sorted_xV, order_xV = scores_xV.sort(dim=-1, descending=True, stable=True)
    share_xV = sorted_xV.softmax(-1)
    before_xV = share_xV.cumsum(-1) - share_xV  # the share of all likelier tokens: below top_p means still needed
    dropped_xV = torch.zeros_like(before_xV, dtype=torch.bool).scatter(-1, order_xV, before_xV >= top_p)
    return scores_xV.masked_fill(dropped_xV, float("-inf"))


def accept_exact(tokens_BN: Tensor, targets_BN: Tensor, shape: Shape, is_real_BN: Tensor | None = None) -> Accepted:
    """Walks down from the root, which is always accepted, while a child equals its parent's target.

    A node is accepted when every node of its path matches. Siblings carry different tokens, hence at most one node of
    a depth is accepted. Where is_real_BN is False a node carries no candidate, whatever its token id says.
    """
    if len(shape.parents_RN) == 1:
        wanted_BN = targets_BN[:, shape.parents_RN[0]]
    else:
        wanted_BN = targets_BN.gather(1, shape.parents_RN)
    is_miss_BN = tokens_BN != wanted_BN
    if is_real_BN is not None:
        is_miss_BN |= ~is_real_BN
    is_miss_BN[:, 0] = False
    return Accepted(~(shape.ancestors_RNN & is_miss_BN[:, None]).any(-1), targets_BN)
