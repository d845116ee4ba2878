"""The base's own tokens at every node of a draft, and which drafted tokens are accepted.

`exact` (the default): at every node the base draws its own next token, the target: argmax(logits) at T = 0, else
argmax(scores + keyed Gumbel noise). Walk down from the root while a child carries its parent's target. Each emitted
token is the one that plain decoding draws there, because the noise belongs to (seed, position, token) and not to the
tree: the text is lossless and the same with any drafter.
`rejection` (accept_rejection.py): lossless too, but in distribution only: a seed's text depends on drafter and tree.
`typical` (Cai et al. 2024): accepts what the base finds likely enough. LOSSY: the text is not a sample of the base.
At T = 0 all three are the same walk.

Letters: B batch, R rows of a shape (1 or B), N nodes, V vocabulary.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from euryale.decoding.accept_rejection import walk_by_rejection
from euryale.decoding.config import AcceptConfig
from euryale.decoding.drafters.interface import Draft
from euryale.decoding.random_streams import StepNoise
from euryale.decoding.sampling_batch import SamplingBatch, final_scores, warp
from euryale.decoding.tree.tree import Shape

LOSSY = ("typical",)  # said wherever a result of such a rule is shown


class VerifyOutput(NamedTuple):
    """What the base decided about a draft."""

    targets_BN: Tensor  # the token that follows a node where the path ends there
    is_accepted_BN: Tensor  # bool: the nodes on the accepted path, root included; ascending = from root to leaf
    # Whether the base's own token has a finite score. NaN and infinity win every argmax, so they are found here for the
    # price of looking at one score a node.
    is_finite_BN: Tensor

    def on_host(self, tokens_BN: Tensor) -> "HostWalk":
        """tokens_BN: of the draft. The one wait of a step: what the host must know travels in one piece."""
        parts = [self.is_accepted_BN, self.is_finite_BN, tokens_BN, self.targets_BN]
        if tokens_BN.device.type == "cpu":
            flags, is_finite, tokens, targets = (part.tolist() for part in parts)
        else:
            flags, is_finite, tokens, targets = torch.stack([part.long() for part in parts]).tolist()
        paths = [[node for node, flag in enumerate(row) if flag] for row in flags]
        gained = [
            [row_tokens[node] for node in path[1:]] + [row_targets[path[-1]]]
            for path, row_tokens, row_targets in zip(paths, tokens, targets, strict=True)
        ]
        lost_rows = [
            row
            for row, (path, finite) in enumerate(zip(paths, is_finite, strict=True))
            if not all(finite[node] for node in path)
        ]
        return HostWalk(paths, gained, tokens, targets, lost_rows)


class HostWalk(NamedTuple):
    """The accepted paths, by row."""

    paths: list[list[int]]  # nodes from the root down
    gained: list[list[int]]  # tokens of the path below the root, then the bonus token
    tokens: list[list[int]]  # of all nodes
    targets: list[list[int]]  # the base's token after each node
    lost_rows: list[int]  # of which a token on the path has a score that is not finite


def walk_exact(draft: Draft, logits_BNV: Tensor, settings: SamplingBatch, noise: StepNoise) -> VerifyOutput:
    """The base's own token at every node, and the path that they accept. logits_BNV: processed."""
    return walk_by_best(draft, final_scores(logits_BNV, settings, noise.drawing(draft.shape.depths_RN)))


def walk_by_best(draft: Draft, scores_BNV: Tensor) -> VerifyOutput:
    """The same from scores whose argmax is the base's token (final_scores)."""
    best_BN, targets_BN = scores_BNV.max(-1)  # ties to the lowest id; of bfloat16 four times as quick as argmax
    is_accepted_BN = accept_exact(draft.tokens_BN, targets_BN, draft.shape, draft.is_real_BN)
    return VerifyOutput(targets_BN, is_accepted_BN, best_BN.isfinite())


Walk = Callable[[Draft, Tensor, SamplingBatch, StepNoise], VerifyOutput]  # walk_exact, or its fast twin


def verify(
    rule: AcceptConfig,
    draft: Draft,
    logits_BNV: Tensor,
    settings: SamplingBatch,
    noise: StepNoise,
    walk_by_target: Walk = walk_exact,
) -> VerifyOutput:
    """Draws the base's token at every node and walks down by the rule; rows at T = 0 walk by `exact`.

    logits_BNV: processed, of what follows each node.
    """
    output = walk_by_target(draft, logits_BNV, settings, noise)
    if rule.name == "exact" or not settings.has_sampled:
        return output
    targets_BN, is_accepted_BN, is_finite_BN = output
    is_sampled_B1 = settings.is_sampled_B11[:, 0]
    scores_BNV = warp(logits_BNV, settings)
    if rule.name == "typical":
        by_rule_BN = accept_typical(draft, scores_BNV.log_softmax(-1), rule.threshold, rule.alpha)
        return VerifyOutput(targets_BN, torch.where(is_sampled_B1, by_rule_BN, is_accepted_BN), is_finite_BN)
    noise_BNV, uniform_BN = noise.drawing(draft.shape.depths_RN), noise.uniform(draft.shape.depths_RN)
    assert noise_BNV is not None and uniform_BN is not None, "rejection draws uniform numbers"
    walk = walk_by_rejection(draft, scores_BNV.softmax(-1), uniform_BN, noise_BNV)
    by_rule_BN = targets_BN.scatter(1, walk.last_B[:, None], walk.next_B[:, None])
    return VerifyOutput(
        torch.where(is_sampled_B1, by_rule_BN, targets_BN),
        torch.where(is_sampled_B1, walk.is_accepted_BN, is_accepted_BN),
        is_finite_BN,
    )


def accept_exact(tokens_BN: Tensor, targets_BN: Tensor, shape: Shape, is_real_BN: Tensor | None = None) -> Tensor:
    """Walks down from the root, which is always accepted, while a child equals its parent's target; bool [B, N].

    A node is accepted when every node of its path matches. Siblings carry different tokens, hence at most one node of
    a depth is accepted. Where is_real_BN is False a node carries no candidate, whatever its token id says.
    """
    is_miss_BN = tokens_BN != _of_parents(targets_BN, shape)
    if is_real_BN is not None:
        is_miss_BN |= ~is_real_BN
    is_miss_BN[:, 0].fill_(False)
    return ~(shape.ancestors_RNN & is_miss_BN[:, None]).any(-1)


def accept_typical(draft: Draft, log_p_BNV: Tensor, threshold: float = 0.09, alpha: float = 0.3) -> Tensor:
    """Accepts a token when p(token) > min(threshold, alpha exp(-entropy of p)) at its parent (Cai et al. 2024, eq. 1).

    Of the paths whose every token is accepted the longest wins, equals by their probability; bool [B, N]. The token
    that follows it is drawn from the base. (The published code takes the likeliest token there.)
    """
    tokens_BN, shape = draft.tokens_BN, draft.shape
    share_BNV = log_p_BNV.exp()
    entropy_BN = -(share_BNV * log_p_BNV.clamp(min=torch.finfo(log_p_BNV.dtype).min)).sum(-1)
    least_BN = (alpha * (-entropy_BN).exp()).clamp(max=threshold)
    parents_BN = shape.parents_RN.expand_as(tokens_BN)
    log_p_BN = log_p_BNV[torch.arange(len(tokens_BN), device=tokens_BN.device)[:, None], parents_BN, tokens_BN]
    is_miss_BN = log_p_BN.exp() <= _of_parents(least_BN, shape)
    if draft.is_real_BN is not None:
        is_miss_BN |= ~draft.is_real_BN
    is_miss_BN[:, 0].fill_(False)
    log_p_BN[:, 0].fill_(0.0)
    is_whole_BN = ~(shape.ancestors_RNN & is_miss_BN[:, None]).any(-1)
    path_log_p_BN = torch.where(shape.ancestors_RNN, log_p_BN[:, None], 0.0).sum(-1)
    depths_BN = shape.depths_RN.expand_as(tokens_BN)
    longest_B1 = torch.where(is_whole_BN, depths_BN, 0).amax(-1, keepdim=True)
    is_best_BN = is_whole_BN & (depths_BN == longest_B1)
    last_B = path_log_p_BN.masked_fill(~is_best_BN, -math.inf).argmax(-1)
    ancestors_BNN = shape.ancestors_RNN.expand(len(tokens_BN), -1, -1)
    return ancestors_BNN[torch.arange(len(last_B), device=last_B.device), last_B]


def _of_parents(values_BN: Tensor, shape: Shape) -> Tensor:
    if len(shape.parents_RN) == 1:
        return values_BN.index_select(1, shape.parents_RN[0])
    return values_BN.gather(1, shape.parents_RN)
