"""Selection of labels: the tokens of a batch that count, for each head.

A label at position p counts for head k when its source position t = p - 2 - k lies in the same document and
`is_target` holds at p.

Letters: B batch, T tokens, U labels any head counts, M labels one head counts, K heads.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from euryale.data.batches import Batch

FIRST_GAP = 2  # head 0 looks two tokens ahead: the next one is the base's own


class Selection(NamedTuple):
    """Labels by their place in the flattened [B * T] batch, on the batch's device."""

    positions_U: Tensor
    members_KM: list[Tensor]  # per head: ascending indices into positions_U


def select_labels(batch: Batch, gaps: Iterable[int], is_allowed_BT: Tensor | None = None) -> Selection:
    """The labels that count for heads looking `gaps` tokens ahead; `is_allowed_BT` can rule out some tokens."""
    documents_BT = batch.documents_BT
    counted = []
    for gap in gaps:
        counts_BT = torch.zeros_like(batch.is_target_BT)
        same_BT = (documents_BT[:, gap:] == documents_BT[:, :-gap]) & (documents_BT[:, gap:] >= 0)
        counts_BT[:, gap:] = batch.is_target_BT[:, gap:] & same_BT
        if is_allowed_BT is not None:
            counts_BT &= is_allowed_BT
        counted.append(counts_BT.flatten())
    positions_U = torch.stack(counted).any(dim=0).nonzero()[:, 0]
    return Selection(positions_U, [counts[positions_U].nonzero()[:, 0] for counts in counted])
