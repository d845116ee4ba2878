"""Losses of K heads over a vocabulary of V that never hold [positions, K, V] logits.

Labels are walked in chunks of C. For a chunk the base's logits are computed once and serve every head; each head's
logits are computed, turned into loss and gradient (losses.py), and dropped. The gradient is known in the forward pass:

    dL/dhidden = dL/dlogits @ W        dL/dW = dL/dlogits^T @ hidden        (q = softmax(hidden @ W^T))

A head's W may be several matrices side by side (a frozen one that all share, and a correction of its own), each of its
own dtype; each has its columns of the hidden states, and joining them would copy the shared one for every head.

Backward only multiplies by the incoming scalar. bfloat16 matrices are multiplied in bfloat16, float16 ones in float32
(small gradients vanish in float16); losses are float32 in any case. What is avoided: 3 K U V numbers (logits, softmax,
gradient); what is held: a few [C, V] buffers, one [M, X] gradient per head and, for a matrix of its own, its gradient.
The same idea for one output: Liger-Kernel's fused linear cross-entropy (arXiv 2410.10989, section 3.2).

Letters: U labels that any head counts, M labels that one head counts, C labels in a chunk, X numbers that a head hands
over, D of which one matrix reads, V vocabulary.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from euryale.training.losses import Loss, Target
from euryale.training.sums import DeviceSums


class Labels(NamedTuple):
    """What is to be predicted, and by which heads."""

    ids_U: Tensor  # the label tokens, on the device of the hidden states
    members_KM: list[Tensor]  # per head: ascending indices into ids_U, on the same device
    bounds_K: list[list[int]]  # per head: where in its members each chunk begins, and the end
    chunk: int  # C
    teacher_logits: Callable[[int, int], Tensor] | None  # labels [start, stop) -> the base's logits; None: not asked
    loss: Loss


class Problem(NamedTuple):
    """Hidden states, output matrices and labels: everything a loss is made of."""

    hidden_KMX: list[Tensor]
    outputs_K: list[tuple[Tensor, ...]]  # each head's output matrices, which read its hidden states side by side
    labels: Labels


class Chunk(NamedTuple):
    """One head's logits on one chunk, which the receiver may overwrite."""

    head: int
    rows: slice  # of the head's hidden states
    hidden_CX: Tensor
    weights: tuple[Tensor, ...]  # [V, D] each, side by side, in the dtype of their product
    logits_CV: Tensor  # float32 or wider
    labels_C: Tensor
    teacher_CV: Tensor | None  # the base's probabilities
    teacher_entropy_C: Tensor | None
    loss: Loss

    @property
    def target(self) -> Target:
        """What the logits are held to."""
        return Target(self.labels_C, self.teacher_CV, self.teacher_entropy_C)


def chunked_loss(problem: Problem) -> DeviceSums:
    """Summed loss of all heads; gradients flow to every hidden state and weight that asks for them."""
    weights = [weight for of_head in problem.outputs_K for weight in of_head]
    num_weights_K = [len(of_head) for of_head in problem.outputs_K]
    loss, heads_3K = _ChunkedLoss.apply(problem.labels, num_weights_K, *problem.hidden_KMX, *weights)
    return DeviceSums(loss, heads_3K, heads_3K.new_zeros(4))


def label_loss(chunk: Chunk) -> Tensor:
    """Loss of each label [C]; chunk.logits_CV becomes the log-probabilities."""
    log_q_CV = chunk.logits_CV
    log_q_CV.sub_(torch.logsumexp(log_q_CV, dim=-1, keepdim=True))
    return chunk.loss.value(log_q_CV, chunk.target)


def chunks(problem: Problem) -> Iterator[Chunk]:
    """Walks the labels; within a chunk, the heads. Products are in autocast's dtype where it is on."""
    hidden_KMX, labels = problem.hidden_KMX, problem.labels
    outputs_K = _cast_once(problem.outputs_K)
    for number, start in enumerate(range(0, len(labels.ids_U), labels.chunk)):
        stop = min(start + labels.chunk, len(labels.ids_U))
        p_CV = entropy_C = None
        if labels.teacher_logits is not None:
            p_CV, entropy_C = _probabilities(labels.teacher_logits(start, stop))
        for k, (hidden_MX, weights) in enumerate(zip(hidden_KMX, outputs_K, strict=True)):
            rows = slice(labels.bounds_K[k][number], labels.bounds_K[k][number + 1])
            members_C = labels.members_KM[k][rows]
            if not len(members_C):
                continue
            hidden_CX = hidden_MX[rows].detach()
            logits_CV = _logits(hidden_CX, weights)
            own_p_CV, own_entropy_C = p_CV, entropy_C
            if p_CV is not None and entropy_C is not None and len(members_C) < stop - start:
                own_p_CV, own_entropy_C = p_CV[members_C - start], entropy_C[members_C - start]
            label_ids_C = labels.ids_U[members_C]
            yield Chunk(k, rows, hidden_CX, weights, logits_CV, label_ids_C, own_p_CV, own_entropy_C, labels.loss)


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, labels: Labels, num_weights_K: list[int], *tensors: Tensor) -> tuple[Tensor, Tensor]:
        num_heads = len(num_weights_K)
        hidden_KMX = list(tensors[:num_heads])
        firsts_K = [num_heads + sum(num_weights_K[:k]) for k in range(num_heads)]  # where a head's matrices begin
        outputs_K = [tensors[first : first + num] for first, num in zip(firsts_K, num_weights_K, strict=True)]
        device, dtype = hidden_KMX[0].device, torch.promote_types(hidden_KMX[0].dtype, torch.float32)
        wants = ctx.needs_input_grad[2:]
        grads = [
            torch.zeros_like(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32)) if wanted else None
            for tensor, wanted in zip(tensors, wants, strict=True)
        ]
        heads_3K = torch.zeros(3, num_heads, dtype=torch.float64, device=device)
        loss_K, hits_K, count_K = heads_3K
        for chunk in chunks(Problem(hidden_KMX, outputs_K, labels)):
            k = chunk.head
            hits_K[k] += (chunk.logits_CV.argmax(dim=-1) == chunk.labels_C).sum()
            loss_K[k] += label_loss(chunk).sum(dtype=torch.float64)
            count_K[k] += len(chunk.labels_C)
            hidden_grad_MX, weight_grads = grads[k], grads[firsts_K[k] : firsts_K[k] + num_weights_K[k]]
            if hidden_grad_MX is None and all(grad is None for grad in weight_grads):
                continue
            grad_CV = chunk.loss.gradient(chunk.logits_CV, chunk.target)
            for columns, weight_VD, weight_grad_VD in zip(
                _columns(chunk.weights), chunk.weights, weight_grads, strict=True
            ):
                cast_grad_CV = grad_CV.to(weight_VD.dtype)
                if hidden_grad_MX is not None:
                    hidden_grad_MX[chunk.rows, columns] = (cast_grad_CV @ weight_VD).to(hidden_grad_MX.dtype)
                if weight_grad_VD is not None:
                    weight_grad_VD += cast_grad_CV.T @ chunk.hidden_CX[:, columns].to(weight_VD.dtype)
        ctx.grads = grads
        ctx.dtypes = [tensor.dtype for tensor in tensors]
        ctx.mark_non_differentiable(heads_3K)
        return loss_K.sum().to(dtype), heads_3K

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        assert ctx.grads is not None, "the gradients were handed out: this loss can be differentiated once"
        grads, ctx.grads = ctx.grads, None
        scaled = (
            None if grad is None else grad.mul_(grad_outputs[0]).to(dtype)
            for grad, dtype in zip(grads, ctx.dtypes, strict=True)
        )
        return None, None, *scaled


def _columns(weights: tuple[Tensor, ...]) -> list[slice]:
    """The columns of the hidden states that each matrix reads."""
    ends = list(itertools.accumulate(weight.shape[1] for weight in weights))
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def _logits(hidden_CX: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
    logits_CV, *others = (
        _widen(hidden_CX[:, columns].to(weight_VD.dtype) @ weight_VD.T)
        for columns, weight_VD in zip(_columns(weights), weights, strict=True)
    )
    for other_CV in others:
        logits_CV += other_CV
    return logits_CV


def _probabilities(logits_CV: Tensor) -> tuple[Tensor, Tensor]:
    """The base's distribution p [C, V] and its entropy [C] in nats."""
    log_p_CV = torch.log_softmax(_widen(logits_CV), dim=-1)
    p_CV = log_p_CV.exp()
    return p_CV, -torch.linalg.vecdot(p_CV, log_p_CV)


def _widen(tensor: Tensor) -> Tensor:
    """At least float32: sums over a vocabulary lose too much in 16 bits."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _cast_once(outputs_K: Sequence[tuple[Tensor, ...]]) -> Sequence[tuple[Tensor, ...]]:
    """The matrices in the dtype of the product; heads that share one share its copy."""
    device = outputs_K[0][0].device.type
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    cast = {
        id(weight): weight.to(autocast or (torch.float32 if weight.dtype == torch.float16 else weight.dtype))
        for weight in {id(weight): weight for of_head in outputs_K for weight in of_head}.values()
    }
    return [tuple(cast[id(weight)] for weight in of_head) for of_head in outputs_K]
