"""Which drafted tokens are taken?

`exact` (the default): at every node the base draws its own next token, the target: argmax(logits) at T = 0, else
argmax(scores + keyed Gumbel noise). Walk down from the root while a child carries its parent's target. Each emitted
token is the one that plain decoding draws there, because the noise belongs to (seed, position, token) and not to the
tree: the text is lossless and the same with any drafter.
`rejection` (accept_rejection.py): lossless too, but in distribution only: a seed's text depends on drafter and tree.
`typical` (Cai et al. 2024): takes what the base finds likely enough. LOSSY: the text is not a sample of the base.
At T = 0 all three are the same walk.

Letters: B batch, R rows of a shape (1 or B), N nodes, V vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from euryale.decoding.accept_rejection import walk_by_rejection
from euryale.decoding.drafters.interface import Draft
from euryale.decoding.sampling import Drawn, Sampling, warp
from euryale.decoding.tree.tree import Shape
from euryale.errors import UserError


class Verified(NamedTuple):
    """A draft, and what the base thinks of it."""

    draft: Draft
    logits_BNV: Tensor  # processed, of what follows each node
    drawn: Drawn  # the base's own choice there
    noise_BNV: Tensor | None  # by which it was drawn; None at T = 0
    chance_BN: Tensor | None = None  # a uniform number for each node; only rule `rejection` throws dice


class Accepted(NamedTuple):
    """What a walk found."""

    is_accepted_BN: Tensor  # bool: the nodes on the accepted path, root included; ascending = from root to leaf
    targets_BN: Tensor  # the token that follows a node where the path ends there


@dataclass
class AcceptConfig:
    """The rule by which proposals are taken. Raises UserError in `check`."""

    name: str = "exact"
    coupled: bool = True  # candidates are ranked with the noise that the base draws with
    threshold: float = 0.09  # of `typical`: what is likelier is always taken ...
    alpha: float = 0.3  # ... and what is likelier than this times exp(-entropy)

    @staticmethod
    def of(rule: "AcceptConfig | str") -> "AcceptConfig":
        """A rule by its name, with the values of conf/accept."""
        if isinstance(rule, AcceptConfig):
            return rule
        return AcceptConfig(rule, coupled=rule == "exact")

    def check(self) -> None:
        if self.name not in RULES:
            raise UserError(f"accept={self.name} is not known. Choose one of: {', '.join(RULES)}.")
        if self.name == "rejection" and self.coupled:
            raise UserError(
                "accept.coupled=true with accept=rejection: its candidates are drawn with noise of their own, or the "
                "text would be biased. Leave it false."
            )
        if not 0.0 < self.threshold <= 1.0:
            raise UserError(f"accept.threshold={self.threshold} cannot be. Give a number above 0 and at most 1.")
        if not 0.0 < self.alpha < math.inf:
            raise UserError(f"accept.alpha={self.alpha} cannot be. Give a positive number.")


def accept(config: AcceptConfig, verified: Verified, sampling: Sampling) -> Accepted:
    """The accepted path of every row, by the rule; greedy decoding has one path whatever the rule."""
    return RULES[config.name if sampling.temperature > 0 else "exact"](config, verified, sampling)


def accept_exact(tokens_BN: Tensor, targets_BN: Tensor, shape: Shape, is_real_BN: Tensor | None = None) -> Accepted:
    """Walks down from the root, which is always accepted, while a child equals its parent's target.

    A node is accepted when every node of its path matches. Siblings carry different tokens, hence at most one node of
    a depth is accepted. Where is_real_BN is False a node carries no candidate, whatever its token id says.
    """
    is_miss_BN = tokens_BN != _of_parents(targets_BN, shape)
    if is_real_BN is not None:
        is_miss_BN |= ~is_real_BN
    is_miss_BN[:, 0] = False
    return Accepted(~(shape.ancestors_RNN & is_miss_BN[:, None]).any(-1), targets_BN)


def accept_typical(
    tokens_BN: Tensor,
    log_p_BNV: Tensor,
    targets_BN: Tensor,
    shape: Shape,
    is_real_BN: Tensor | None = None,
    threshold: float = 0.09,
    alpha: float = 0.3,
) -> Accepted:
    """Takes a token when p(token) > min(threshold, alpha exp(-entropy of p)) at its parent (Cai et al. 2024, eq. 1).

    Of the paths whose every token is taken the longest wins, equals by their probability. What follows it is drawn
    from the base. (The published code takes the likeliest token there.)
    """
    share_BNV = log_p_BNV.exp()
    entropy_BN = -(share_BNV * log_p_BNV.clamp(min=torch.finfo(log_p_BNV.dtype).min)).sum(-1)
    least_BN = (alpha * (-entropy_BN).exp()).clamp(max=threshold)
    parents_BN = shape.parents_RN.expand_as(tokens_BN)
    log_p_BN = log_p_BNV[torch.arange(len(tokens_BN), device=tokens_BN.device)[:, None], parents_BN, tokens_BN]
    is_miss_BN = log_p_BN.exp() <= _of_parents(least_BN, shape)
    if is_real_BN is not None:
        is_miss_BN |= ~is_real_BN
    is_miss_BN[:, 0] = False
    log_p_BN[:, 0] = 0.0
    is_whole_BN = ~(shape.ancestors_RNN & is_miss_BN[:, None]).any(-1)
    path_log_p_BN = torch.where(shape.ancestors_RNN, log_p_BN[:, None], 0.0).sum(-1)
    depths_BN = shape.depths_RN.expand_as(tokens_BN)
    longest_B1 = torch.where(is_whole_BN, depths_BN, 0).amax(-1, keepdim=True)
    is_best_BN = is_whole_BN & (depths_BN == longest_B1)
    last_B = path_log_p_BN.masked_fill(~is_best_BN, -math.inf).argmax(-1)
    ancestors_BNN = shape.ancestors_RNN.expand(len(tokens_BN), -1, -1)
    return Accepted(ancestors_BNN[torch.arange(len(last_B), device=last_B.device), last_B], targets_BN)


def _of_parents(values_BN: Tensor, shape: Shape) -> Tensor:
    if len(shape.parents_RN) == 1:
        return values_BN.index_select(1, shape.parents_RN[0])
    return values_BN.gather(1, shape.parents_RN)


def _exact(config: AcceptConfig, verified: Verified, sampling: Sampling) -> Accepted:
    draft = verified.draft
    return accept_exact(draft.tokens_BN, verified.drawn.tokens_BN, draft.shape, draft.is_real_BN)


def _rejection(config: AcceptConfig, verified: Verified, sampling: Sampling) -> Accepted:
    assert verified.noise_BNV is not None and verified.chance_BN is not None, "rejection throws dice"
    p_BNV = warp(verified.logits_BNV, sampling).softmax(-1)
    path = walk_by_rejection(verified.draft, p_BNV, verified.chance_BN, verified.noise_BNV)
    targets_BN = verified.drawn.tokens_BN.scatter(1, path.last_B[:, None], path.next_B[:, None])
    return Accepted(path.is_accepted_BN, targets_BN)


def _typical(config: AcceptConfig, verified: Verified, sampling: Sampling) -> Accepted:
    draft, log_p_BNV = verified.draft, warp(verified.logits_BNV, sampling).log_softmax(-1)
    how = (draft.shape, draft.is_real_BN, config.threshold, config.alpha)
    return accept_typical(draft.tokens_BN, log_p_BNV, verified.drawn.tokens_BN, *how)


RULES: dict[str, Callable[[AcceptConfig, Verified, Sampling], Accepted]] = {
    "exact": _exact,
    "rejection": _rejection,
    "typical": _typical,
}
LOSSY = ("typical",)  # said wherever a result of such a rule is shown
