"""Held-out quality of heads: loss and top-k accuracy of each, without gradients.

Letters: M labels one head counts, C labels in a chunk, K heads, R ranks, D width, V vocabulary.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from euryale.data.batches import Batch
from euryale.errors import UserError
from euryale.training.chunked_loss import Problem, chunks, label_loss
from euryale.training.labels import select_labels

RANKS = (1, 5, 10)
NO_LABELS = (
    "The held-out text has no token to score: its documents are too short, or none of its tokens is a target. "
    "Give more held-out text (data=...), or turn evaluation off (optim.eval_batches=0)."
)


class Means(NamedTuple):
    """Means over held-out labels, on the host."""

    loss: float
    loss_K: list[float]
    accuracy_RK: list[list[float]]  # one row per entry of RANKS
    count_K: list[int]


def check_labels(batches: Sequence[Batch], gap: int) -> None:
    """Raises UserError when an evaluation of these batches has nothing to score: better now than in an hour."""
    if batches and not any(len(select_labels(batch, [gap]).positions_U) for batch in batches):
        raise UserError(NO_LABELS)


@torch.no_grad()
def score(problems: Iterable[Problem]) -> Means:
    """Adds up loss and ranks chunk by chunk. Among equal logits the lower id comes first, as in argmax.

    Raises UserError when there is no label at all.
    """
    loss_K: Tensor | None = None
    for problem in problems:
        K, device = len(problem.hidden_KMX), problem.labels.ids_U.device
        if loss_K is None:
            loss_K, count_K = torch.zeros(2, K, dtype=torch.float64, device=device)
            hits_RK = torch.zeros(len(RANKS), K, dtype=torch.float64, device=device)
        for chunk in chunks(problem):
            own_C1 = chunk.logits_CV.gather(1, chunk.labels_C[:, None])
            ids_V = torch.arange(chunk.logits_CV.shape[1], device=device)
            ahead_CV = chunk.logits_CV > own_C1
            ahead_CV |= (chunk.logits_CV == own_C1) & (ids_V < chunk.labels_C[:, None])
            ranks_C = ahead_CV.sum(dim=1)
            for r, rank in enumerate(RANKS):
                hits_RK[r, chunk.head] += (ranks_C < rank).sum()
            count_K[chunk.head] += len(ranks_C)
            loss_K[chunk.head] += label_loss(chunk).sum(dtype=torch.float64)
    if loss_K is None or not count_K.sum():
        raise UserError(NO_LABELS)
    per_label_K = count_K.clamp(min=1)
    return Means(
        float(loss_K.sum() / count_K.sum()),
        (loss_K / per_label_K).tolist(),
        (hits_RK / per_label_K).tolist(),
        [int(count) for count in count_K.tolist()],
    )
