"""Objectives: which labels of a batch count, and the loss of the heads (or the base) on them.

`medusa1`: heads only (Cai et al. 2024, section 2.2.1). One pass of the frozen base gives the hidden states every
head reads and, at the position before each label, the distribution a head is distilled towards; that is as exact a
target as there is, and free. `medusa2`: heads first, then heads and the base's adapters together (section 2.2.2), the
adapted base held near the base as it was. `pretrain`: the base itself learns to predict the next token.

Only positions that count (labels.py) go through a head.

Letters: B batch, T tokens, U labels any head counts, M labels one head counts, K heads, D width, V vocabulary.
"""

from collections.abc import Callable, Iterable
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from euryale.base.base import Base
from euryale.base.lora import adapter_disabled
from euryale.data.batches import Batch
from euryale.heads.heads import Heads, PackedText
from euryale.kernels.rms_norm import normalise
from euryale.training.chunked_loss import Labels, Problem, chunked_loss
from euryale.training.config import ObjectiveConfig
from euryale.training.labels import FIRST_GAP, Selection, select_labels
from euryale.training.losses import LOSSES
from euryale.training.scoring import RANKS, score
from euryale.training.stages import Stage, heads_weight
from euryale.training.sums import DeviceSums


def medusa1_loss(
    base: Base, heads: Heads | None, batch: Batch, config: ObjectiveConfig, stage: Stage | None = None
) -> DeviceSums:
    """Loss of the heads on a batch; the base is run once, without gradients.

    With a draft vocabulary, heads and teacher are distributions over it, and labels outside of it do not count: what
    is never drafted need not be learned.
    """
    assert heads is not None
    return chunked_loss(_head_problem(base, heads, batch, config, heads.draft_ids))


def medusa2_loss(
    base: Base, heads: Heads | None, batch: Batch, config: ObjectiveConfig, stage: Stage | None = None
) -> DeviceSums:
    """Stage one: medusa1_loss with the adapters off. Stage two: KL(base as it was || adapted base), summed over
    the next-token labels, plus the heads' weight times their loss, of which the adapters feel the gradient.

    Heads learn the adapted base's distribution (`kl`), because that is the base that will verify them. One model is in
    memory; it is run once with adapters, with gradients, and once without.
    """
    assert heads is not None and stage is not None
    if stage.number == 1:
        with adapter_disabled(base):
            return medusa1_loss(base, heads, batch, config)
    hidden_BTC = _forward(base, batch, heads)
    with torch.no_grad(), adapter_disabled(base):
        before_BTD = _forward(base, batch)
    of_base = chunked_loss(_base_problem(base, batch, config, hidden_BTC[..., : base.hidden_size], before_BTD))
    of_heads = chunked_loss(_head_problem(base, heads, batch, config, heads.draft_ids, hidden_BTC))
    weight = heads_weight(stage, config.lambda_0, config.lambda_schedule)
    others_4 = torch.cat([of_base.loss_K, of_base.count_K, of_heads.others_4[2:]])
    return DeviceSums(of_base.loss + weight * of_heads.loss, of_heads.heads_3K, others_4)


def pretrain_loss(
    base: Base, heads: Heads | None, batch: Batch, config: ObjectiveConfig, stage: Stage | None = None
) -> DeviceSums:
    """Next-token cross-entropy of the base itself; K is 1."""
    return chunked_loss(_base_problem(base, batch, config, _forward(base, batch)))


def evaluate_heads(
    base: Base,
    heads: Heads,
    batches: Iterable[Batch],
    max_batches: int,
    config: ObjectiveConfig | None = None,
    states_of: Callable[[Batch], Tensor] | None = None,
) -> dict[str, object]:
    """Held-out quality: loss_nats (mean over labels of all heads) and, per head, loss and top-1/5/10 accuracy.

    states_of: what the heads read of a batch, [B, T, C], where that is not what training reads. With a draft vocabulary
    the loss is that of training; accuracies are shares of all labels, and a token that cannot be drafted is a miss.
    """
    config = config or ObjectiveConfig()
    chosen = list(islice(batches, max_batches))
    means = score(
        _head_problem(base, heads, batch, config, heads.draft_ids, states_of(batch) if states_of else None)
        for batch in chosen
    )
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


@torch.no_grad()
def evaluate_joint(
    base: Base, heads: Heads, batches: Iterable[Batch], max_batches: int, config: ObjectiveConfig
) -> dict[str, object]:
    """Held-out quality of heads and adapters, and base_kl_nats: how far the adapters have moved the base."""
    chosen = list(islice(batches, max_batches))
    metrics = evaluate_heads(base, heads, chosen, max_batches, config)

    def moved(batch: Batch) -> Problem:
        with adapter_disabled(base):
            before_BTD = _forward(base, batch)
        return _base_problem(base, batch, config, _forward(base, batch), before_BTD)

    return metrics | {"base_kl_nats": score(map(moved, chosen)).loss}


def evaluate_base(
    base: Base, heads: Heads | None, batches: Iterable[Batch], max_batches: int, config: ObjectiveConfig
) -> dict[str, object]:
    """Held-out quality of the base: loss_nats, perplexity, top-1 accuracy."""
    means = score(_base_problem(base, batch, config, _forward(base, batch)) for batch in islice(batches, max_batches))
    return {
        "loss_nats": means.loss,
        "perplexity": float(torch.tensor(means.loss, dtype=torch.float64).exp()),
        "top1": means.accuracy_RK[0][0],
        "num_labels": means.count_K[0],
    }


def _head_problem(
    base: Base,
    heads: Heads,
    batch: Batch,
    config: ObjectiveConfig,
    draft_ids: Tensor | None = None,
    hidden_BTC: Tensor | None = None,
) -> Problem:
    """With `draft_ids`, a problem over these tokens alone: a label is then its place among them.

    `hidden_BTC`: the base's states, with gradients that go on into the base or of another forward; else computed here.
    """
    ids_BT = batch.ids_BT.to(base.device)
    label_BT, allowed = ids_BT, None
    if draft_ids is not None:
        is_drafted_V = torch.zeros(base.vocab_size, dtype=torch.bool, device=base.device)
        is_drafted_V[draft_ids] = True
        allowed = is_drafted_V[ids_BT].to(batch.is_target_BT.device)
        label_BT = torch.searchsorted(draft_ids, ids_BT)  # ascending ids; only read where allowed
    selection = select_labels(batch, [FIRST_GAP + k for k in range(heads.num_heads)], allowed)
    with torch.no_grad():
        if hidden_BTC is None:
            hidden_BTC = _forward(base, batch, heads)
        embedded_BTD = normalise(base.embed(ids_BT))
    base_hidden_PC = hidden_BTC.flatten(0, 1)  # outside: a view made without gradients would let none through
    dtype = next(heads.parameters()).dtype
    positions_U = selection.positions_U.to(base.device)
    sources_KM = [
        positions_U[members_M.to(base.device)] - FIRST_GAP - k for k, members_M in enumerate(selection.members_KM)
    ]
    text = PackedText(
        hidden_BTC.to(dtype),
        embedded_BTD.to(dtype),
        batch.positions_BT.to(base.device),
        batch.documents_BT.to(base.device),
        ids_BT,
    )
    hidden_KMX = heads.guesses(text, sources_KM)

    teacher_weight_VD = base.lm_head_weight if draft_ids is None else base.lm_head_weight[draft_ids]

    def teacher_logits(start: int, stop: int) -> Tensor:
        final_UD = base_hidden_PC[positions_U[start:stop] - 1, : base.hidden_size]
        return torch.nn.functional.linear(final_UD.detach(), teacher_weight_VD)

    teacher = teacher_logits if LOSSES[config.loss].needs_teacher else None
    labels = _labels(label_BT, selection, config.chunk_tokens, teacher, config.loss)
    outputs = [heads.output_parts(k, base.lm_head_weight) for k in range(heads.num_heads)]
    if draft_ids is not None:
        whole = {id(weight): weight for of_head in outputs for weight in of_head}
        drawn = {key: weight[draft_ids] for key, weight in whole.items()}  # heads that share a matrix share its rows
        outputs = [tuple(drawn[id(weight)] for weight in of_head) for of_head in outputs]
    return Problem(hidden_KMX, outputs, labels)


def _base_problem(
    base: Base, batch: Batch, config: ObjectiveConfig, hidden_BTD: Tensor, teacher_BTD: Tensor | None = None
) -> Problem:
    """Next tokens from the base's states; the targets are the text's tokens, or what the base says from teacher_BTD."""
    selection = select_labels(batch, [1])
    sources_U = selection.positions_U.to(base.device) - 1

    def teacher_logits(start: int, stop: int) -> Tensor:
        assert teacher_BTD is not None
        return torch.nn.functional.linear(teacher_BTD.flatten(0, 1)[sources_U[start:stop]], base.lm_head_weight)

    teacher = None if teacher_BTD is None else teacher_logits
    labels = _labels(batch.ids_BT.to(base.device), selection, config.chunk_tokens, teacher, "kl" if teacher else "ce")
    return Problem([hidden_BTD.flatten(0, 1)[sources_U]], [(base.lm_head_weight,)], labels)


def _forward(base: Base, batch: Batch, heads: Heads | None = None) -> Tensor:
    """The base's final states, and for `heads` the others that they read."""
    layers = () if heads is None else heads.layers_read(base.num_layers)
    device = base.device
    return base.forward_packed(
        batch.ids_BT.to(device), batch.positions_BT.to(device), batch.documents_BT.to(device), layers
    )


def _labels(
    ids_BT: Tensor,
    selection: Selection,
    chunk: int,
    teacher_logits: Callable[[int, int], Tensor] | None,
    loss: str,
) -> Labels:
    device = ids_BT.device
    edges = torch.arange(0, len(selection.positions_U) + chunk, chunk, device=selection.positions_U.device)
    return Labels(
        ids_BT.flatten()[selection.positions_U.to(device)],
        [members_M.to(device) for members_M in selection.members_KM],
        [torch.searchsorted(members_M, edges).tolist() for members_M in selection.members_KM],
        chunk,
        teacher_logits,
        LOSSES[loss],
    )


class Objective(NamedTuple):
    """A loss for training, its held-out measure, how far ahead its nearest label lies, whether adapters are trained."""

    gap: int
    loss: Callable[[Base, Heads | None, Batch, ObjectiveConfig, Stage | None], DeviceSums]
    evaluate: Callable[..., dict[str, object]]
    trains_adapter: bool = False


OBJECTIVES = {
    "medusa1": Objective(FIRST_GAP, medusa1_loss, evaluate_heads),
    "medusa2": Objective(FIRST_GAP, medusa2_loss, evaluate_joint, trains_adapter=True),
    "pretrain": Objective(1, pretrain_loss, evaluate_base),
}
