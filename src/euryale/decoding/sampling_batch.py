"""Sampling settings of the rows of a batch as tensors, and the scores that tokens are drawn by.

All rows are drawn at once, whatever their settings. A filter that a row does not ask for leaves the row's scores as
they are, bit by bit, so a row is drawn as it would be alone.

Letters: B batch, N nodes, V vocabulary.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from euryale.decoding.sampling import Sampling

NUM_COLUMNS = 5
_MOST_K = 1 << 24  # above every vocabulary, and exact in float32
_LEAST_P = 1e-30  # smaller shares would be 0 in float32, and not even the likeliest token would be left


class Asked(NamedTuple):
    """What at least one row asks for; a filter that none asks for costs nothing."""

    has_greedy: bool
    has_sampled: bool
    most_k: int = 0  # 0: no row asks for top-k
    has_top_p: bool = False
    has_min_p: bool = False

    @staticmethod
    def by(samplings: Sequence[Sampling]) -> "Asked":
        return Asked(
            any(s.temperature == 0 for s in samplings),
            any(s.temperature > 0 for s in samplings),
            max((s.top_k for s in samplings), default=0),
            any(s.top_p < 1.0 for s in samplings),
            any(s.min_p > 0.0 for s in samplings),
        )

    @property
    def has_filters(self) -> bool:
        return self.most_k > 0 or self.has_top_p or self.has_min_p


def columns_of(samplings: Sequence[Sampling], device: torch.device) -> Tensor:
    """Temperature, top-k, top-p, min-p and whether it is sampled, of each row: float32 [B, 5].

    A row at T = 0 is not divided, and not filtered: its scores are its logits.
    """
    rows = [
        (
            s.temperature or 1.0,
            min(s.top_k, _MOST_K),
            max(s.top_p, _LEAST_P) if s.top_p < 1.0 else math.inf,
            s.min_p,
            s.temperature > 0,
        )
        for s in samplings
    ]
    return torch.tensor(rows, dtype=torch.float32, device=device).reshape(-1, NUM_COLUMNS)


class SamplingBatch:
    """Temperature and filters of each row, [B, 1, 1] each. Made when rows come or go, then read in every step."""

    def __init__(self, asked: Asked, columns_B5: Tensor) -> None:
        """columns_B5: columns_of the rows."""
        self.has_greedy, self.has_sampled, self.most_k, self.has_top_p, self.has_min_p = asked
        columns = columns_B5[..., None, None].unbind(1)
        self.temperature_B11, top_k_B11, self.top_p_B11, self.min_p_B11, is_sampled_B11 = columns
        self.top_k_B11 = top_k_B11.long()
        self.is_sampled_B11 = is_sampled_B11.bool()

    @property
    def has_filters(self) -> bool:
        """Whether sampling is more than a temperature."""
        return bool(self.most_k or self.has_top_p or self.has_min_p)

    @staticmethod
    def of(samplings: Sequence[Sampling], device: torch.device) -> "SamplingBatch":
        return SamplingBatch(Asked.by(samplings), columns_of(samplings, device))


def final_scores(logits_BNV: Tensor, settings: SamplingBatch, noise_BNV: Tensor | None) -> Tensor:
    """Scores whose argmax is the next token at every node. Ties go to the lowest id.

    logits_BNV: processed (logits_processors.py). noise_BNV: keyed noise of the position that the token would take;
    None where every row is at T = 0.
    """
    if not settings.has_sampled:
        return logits_BNV
    assert noise_BNV is not None, "sampling needs noise"
    scores_BNV = warp(logits_BNV, settings) + noise_BNV
    return torch.where(settings.is_sampled_B11, scores_BNV, logits_BNV) if settings.has_greedy else scores_BNV


def warp(logits_BNV: Tensor, settings: SamplingBatch) -> Tensor:
    """Processed logits -> float32 scores whose softmax is the distribution that is sampled.

    Rows at T = 0 count as T = 1; their scores are not used.
    """
    scores_BNV = logits_BNV.float() / settings.temperature_B11
    if settings.most_k:
        scores_BNV = keep_top_k(scores_BNV, settings.top_k_B11, settings.most_k)
    if settings.has_top_p:
        scores_BNV = keep_top_p(scores_BNV, settings.top_p_B11)
    if settings.has_min_p:
        scores_BNV = keep_min_p(scores_BNV, settings.min_p_B11)
    return scores_BNV


def keep_top_k(scores_BNV: Tensor, top_k_B11: Tensor, most_k: int) -> Tensor:
    """Sets to -inf all scores below the row's top_k-th best (equals of it stay, as in transformers); 0 keeps all.

    most_k: the greatest of top_k_B11.
    """
    B, N, V = scores_BNV.shape
    best_BNK = scores_BNV.topk(min(most_k, V)).values
    place_BN1 = (top_k_B11 - 1).clamp(0, best_BNK.shape[-1] - 1).expand(B, N, 1)
    keeps_all_B11 = (top_k_B11 == 0) | (top_k_B11 >= V)
    least_BN1 = best_BNK.gather(-1, place_BN1).masked_fill(keeps_all_B11, -math.inf)
    return scores_BNV.masked_fill(scores_BNV < least_BN1, -math.inf)


def keep_top_p(scores_BNV: Tensor, top_p_B11: Tensor) -> Tensor:
    """Sets to -inf all but the smallest set of likeliest tokens whose share reaches top_p (Holtzman et al. 2020).

    Infinity keeps all: a sum of shares may round to 1 before the last token.
    """
    sorted_BNV, order_BNV = scores_BNV.sort(dim=-1, descending=True, stable=True)
    share_BNV = sorted_BNV.softmax(-1)
    before_BNV = share_BNV.cumsum(-1) - share_BNV  # the share of all likelier tokens: below top_p means still needed
    dropped_BNV = torch.zeros_like(before_BNV, dtype=torch.bool).scatter(-1, order_BNV, before_BNV >= top_p_B11)
    return scores_BNV.masked_fill(dropped_BNV, -math.inf)


def keep_min_p(scores_BNV: Tensor, min_p_B11: Tensor) -> Tensor:
    """Sets to -inf tokens less than min_p times as likely as the likeliest (Nguyen et al. 2024); 0 keeps all."""
    share_BNV = scores_BNV.softmax(-1)
    return scores_BNV.masked_fill(share_BNV < min_p_B11 * share_BNV.amax(-1, keepdim=True), -math.inf)
