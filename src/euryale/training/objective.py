"""What is learned from a batch: which labels count, and how wrong the heads (or the base) are on them.

`medusa1`: heads only (Cai et al. 2024, section 2.2.1). One pass of the frozen base gives the hidden states every
head reads and, at the position before each label, the distribution a head is distilled towards; that is as exact a
target as there is, and free. `pretrain`: the base itself learns to predict the next token.

A label at position p counts for head k when its source position t = p - 2 - k lies in the same document and
`is_target` holds at p. Only positions that count go through a head.

Letters: B batch, T tokens, U labels any head counts, M labels one head counts, K heads, D width, V vocabulary.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from euryale.errors import UserError
from euryale.model.base import Base
from euryale.model.heads import Heads, normalise
from euryale.training.chunked import Labels, chunked_loss, chunks, label_loss

LOSSES = ("kl", "ce")
FIRST_GAP = 2  # head 0 looks two tokens ahead: the next one is the base's own
RANKS = (1, 5, 10)
NO_LABELS = (
    "The held-out text has no token to score: its documents are too short, or none of its tokens is a target. "
    "Give more held-out text (data=...), or turn evaluation off (optim.eval_batches=0)."
)


@dataclass
class ObjectiveConfig:
    """What is learned; the values in conf/objective are the documented defaults."""

    kind: str = "medusa1"
    loss: str = "kl"
    chunk_tokens: int = 512

    def check(self) -> None:
        """Raises UserError for a value that does not exist."""
        for name, value, options in (("kind", self.kind, tuple(OBJECTIVES)), ("loss", self.loss, LOSSES)):
            if value not in options:
                raise UserError(f"objective.{name}={value} is not known. Choose one of: {', '.join(options)}.")
        if self.chunk_tokens < 1:
            raise UserError(f"objective.chunk_tokens={self.chunk_tokens}: at least 1 is needed (512 is usual).")


class PackedBatch(Protocol):
    """What is read of data.batches.Batch."""

    @property
    def ids_BT(self) -> Tensor: ...
    @property
    def is_target_BT(self) -> Tensor: ...
    @property
    def positions_BT(self) -> Tensor: ...
    @property
    def documents_BT(self) -> Tensor: ...


class LossSums(NamedTuple):
    """Sums over the labels of a batch, so that micro-batches and ranks add up; see the trainer for the division."""

    loss: Tensor  # scalar with gradient, over labels and heads
    loss_K: Tensor  # nats
    hits_K: Tensor  # labels that were the head's first choice
    count_K: Tensor  # labels counted


class Selection(NamedTuple):
    """Labels by their place in the flattened [B * T] batch, on the batch's device."""

    positions_U: Tensor
    members_KM: list[Tensor]  # per head: ascending indices into positions_U


def select_labels(batch: PackedBatch, gaps: Iterable[int], is_allowed_BT: Tensor | None = None) -> Selection:
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


def medusa1_loss(base: Base, heads: Heads | None, batch: PackedBatch, config: ObjectiveConfig) -> LossSums:
    """Loss of the heads on a batch; the base is run once, without gradients.

    With a draft vocabulary, heads and teacher are distributions over it, and labels outside of it do not count: what
    is never drafted need not be learned.
    """
    assert heads is not None
    return _sums(*_head_problem(base, heads, batch, config, heads.draft_ids))


def pretrain_loss(base: Base, heads: Heads | None, batch: PackedBatch, config: ObjectiveConfig) -> LossSums:
    """Next-token cross-entropy of the base itself; K is 1."""
    return _sums(*_base_problem(base, batch, config))


def evaluate_heads(
    base: Base, heads: Heads, batches: Iterable[PackedBatch], max_batches: int, config: ObjectiveConfig | None = None
) -> dict[str, object]:
    """Held-out quality: loss_nats (mean over labels of all heads) and, per head, loss and top-1/5/10 accuracy.

    With a draft vocabulary the loss is that of training; accuracies are shares of all labels, and a token that cannot
    be drafted is a miss.
    """
    config = config or ObjectiveConfig()
    chosen = list(islice(batches, max_batches))
    means = _evaluate(_head_problem(base, heads, batch, config, heads.draft_ids) for batch in chosen)
    if heads.draft_ids is not None:
        gaps = [FIRST_GAP + k for k in range(heads.num_heads)]
        selections = [select_labels(batch, gaps) for batch in chosen]
        all_K = [sum(len(selection.members_KM[k]) for selection in selections) for k in range(heads.num_heads)]
        shares_K = [counted / total for counted, total in zip(means.count_K, all_K, strict=True)]
        accuracy_RK = [[hit * share for hit, share in zip(row, shares_K, strict=True)] for row in means.accuracy_RK]
        means = means._replace(accuracy_RK=accuracy_RK, count_K=all_K)
    return {
        "loss_nats": means.loss,
        "head_loss_nats": means.loss_K,
        **{f"head_top{rank}": means.accuracy_RK[r] for r, rank in enumerate(RANKS)},
        "num_labels": means.count_K,
    }


def evaluate_base(
    base: Base, heads: Heads | None, batches: Iterable[PackedBatch], max_batches: int, config: ObjectiveConfig
) -> dict[str, object]:
    """Held-out quality of the base: loss_nats, perplexity, top-1 accuracy."""
    means = _evaluate(_base_problem(base, batch, config) for batch in islice(batches, max_batches))
    return {
        "loss_nats": means.loss,
        "perplexity": float(torch.tensor(means.loss, dtype=torch.float64).exp()),
        "top1": means.accuracy_RK[0][0],
        "num_labels": means.count_K[0],
    }


class _Problem(NamedTuple):
    """Hidden states, output matrices and labels: everything a loss is made of."""

    hidden_KMD: list[Tensor]
    weights_KVD: list[Tensor]
    labels: Labels


class _Means(NamedTuple):
    loss: float
    loss_K: list[float]
    accuracy_RK: list[list[float]]  # one row per entry of RANKS
    count_K: list[int]


def _head_problem(
    base: Base, heads: Heads, batch: PackedBatch, config: ObjectiveConfig, draft_ids: Tensor | None = None
) -> _Problem:
    """With `draft_ids`, a problem over these tokens alone: a label is then its place among them."""
    ids_BT = batch.ids_BT.to(base.device)
    label_BT, allowed = ids_BT, None
    if draft_ids is not None:
        is_drafted_V = torch.zeros(base.vocab_size, dtype=torch.bool, device=base.device)
        is_drafted_V[draft_ids] = True
        allowed = is_drafted_V[ids_BT].to(batch.is_target_BT.device)
        label_BT = torch.searchsorted(draft_ids, ids_BT)  # ascending ids; only read where allowed
    selection = select_labels(batch, [FIRST_GAP + k for k in range(heads.num_heads)], allowed)
    with torch.no_grad():
        base_hidden_PD = base.forward_packed(
            ids_BT, batch.positions_BT.to(base.device), batch.documents_BT.to(base.device)
        ).flatten(0, 1)
        embeddings_PD = normalise(base.embed(ids_BT)).flatten(0, 1)
    dtype = next(heads.parameters()).dtype
    positions_U = selection.positions_U.to(base.device)
    hidden_KMD = []
    for k, members_M in enumerate(selection.members_KM):
        sources_M = positions_U[members_M.to(base.device)] - FIRST_GAP - k
        known_J = 1 + torch.arange(heads.num_known_tokens(k), device=base.device)
        embeddings_MJD = embeddings_PD[sources_M[:, None] + known_J].to(dtype)
        hidden_KMD.append(heads.head_hidden(k, base_hidden_PD[sources_M].to(dtype), embeddings_MJD))

    teacher_weight_VD = base.lm_head_weight if draft_ids is None else base.lm_head_weight[draft_ids]

    def teacher_logits(start: int, stop: int) -> Tensor:
        return torch.nn.functional.linear(base_hidden_PD[positions_U[start:stop] - 1], teacher_weight_VD)

    labels = _labels(label_BT, selection, config.chunk_tokens, teacher_logits if config.loss == "kl" else None)
    outputs = [heads.output_weight(k, base.lm_head_weight) for k in range(heads.num_heads)]
    if draft_ids is not None:
        drawn = {id(weight): weight[draft_ids] for weight in outputs}  # heads that share a matrix share its rows
        outputs = [drawn[id(weight)] for weight in outputs]
    return _Problem(hidden_KMD, outputs, labels)


def _base_problem(base: Base, batch: PackedBatch, config: ObjectiveConfig) -> _Problem:
    selection = select_labels(batch, [1])
    ids_BT = batch.ids_BT.to(base.device)
    hidden_BTD = base.forward_packed(ids_BT, batch.positions_BT.to(base.device), batch.documents_BT.to(base.device))
    hidden_MD = hidden_BTD.flatten(0, 1)[selection.positions_U.to(base.device) - 1]
    return _Problem([hidden_MD], [base.lm_head_weight], _labels(ids_BT, selection, config.chunk_tokens, None))


def _labels(
    ids_BT: Tensor, selection: Selection, chunk: int, teacher_logits: Callable[[int, int], Tensor] | None
) -> Labels:
    device = ids_BT.device
    edges = torch.arange(0, len(selection.positions_U) + chunk, chunk, device=selection.positions_U.device)
    return Labels(
        ids_BT.flatten()[selection.positions_U.to(device)],
        [members_M.to(device) for members_M in selection.members_KM],
        [torch.searchsorted(members_M, edges).tolist() for members_M in selection.members_KM],
        chunk,
        teacher_logits,
    )


def _sums(hidden_KMD: list[Tensor], weights_KVD: list[Tensor], labels: Labels) -> LossSums:
    sums = chunked_loss(hidden_KMD, weights_KVD, labels)
    counts = [float(len(members_M)) for members_M in labels.members_KM]
    return LossSums(*sums, torch.tensor(counts, dtype=torch.float64, device=sums.loss_K.device))


@torch.no_grad()
def _evaluate(problems: Iterable[_Problem]) -> _Means:
    """Adds up loss and ranks chunk by chunk. Among equal logits the lower id comes first, as in argmax."""
    loss_K: Tensor | None = None
    for problem in problems:
        K, device = len(problem.hidden_KMD), problem.labels.ids_U.device
        if loss_K is None:
            loss_K, count_K = torch.zeros(2, K, dtype=torch.float64, device=device)
            hits_RK = torch.zeros(len(RANKS), K, dtype=torch.float64, device=device)
        for chunk in chunks(*problem):
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
    return _Means(
        float(loss_K.sum() / count_K.sum()),
        (loss_K / per_label_K).tolist(),
        (hits_RK / per_label_K).tolist(),
        [int(count) for count in count_K.tolist()],
    )


class Objective(NamedTuple):
    """A loss for training, its held-out measure, and how far ahead its nearest label lies."""

    gap: int
    loss: Callable[[Base, Heads | None, PackedBatch, ObjectiveConfig], LossSums]
    evaluate: Callable[..., dict[str, object]]


OBJECTIVES = {
    "medusa1": Objective(FIRST_GAP, medusa1_loss, evaluate_heads),
    "pretrain": Objective(1, pretrain_loss, evaluate_base),
}
