"""Losses of a head's distribution q on a label, and their gradients.

    ce   -log q[label]                                         gradient of the logits: q - onehot(label)
    kl   sum_v p_v (log p_v - log q_v)                                                 q - p
    lk   w KL + (1 - w) (1 - a),  w = exp(-3 a)                                        w (q - p) - (1 - w) da/dlogits
         a = sum_v min(p_v, q_v)                                 da/dlogits = q (m - sum_v m_v q_v),  m = [q < p]

p is the base's own distribution, and constant. a is the chance that rejection sampling accepts a token drawn from q:
`lk` follows KL while the two are far apart and acceptance itself once they are near (arXiv 2602.23881); w is held
constant in its gradient.

Letters: C labels of a chunk, V vocabulary.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

_SHARPNESS = 3.0  # of w in `lk`, as published


class Target(NamedTuple):
    """What one head is held to on a chunk of labels."""

    labels_C: Tensor
    teacher_CV: Tensor | None  # the base's probabilities
    teacher_entropy_C: Tensor | None  # nats


class Loss(NamedTuple):
    """A loss and its gradient; the gradient is called after the value and may overwrite log_q_CV."""

    needs_teacher: bool
    value: Callable[[Tensor, Target], Tensor]  # (log_q_CV, target) -> [C], nats
    gradient: Callable[[Tensor, Target], Tensor]  # (log_q_CV, target) -> dL/dlogits [C, V]


def _ce(log_q_CV: Tensor, target: Target) -> Tensor:
    return -log_q_CV.gather(1, target.labels_C[:, None])[:, 0]


def _ce_gradient(log_q_CV: Tensor, target: Target) -> Tensor:
    grad_CV = log_q_CV.exp_()
    grad_CV[torch.arange(len(target.labels_C), device=grad_CV.device), target.labels_C] -= 1
    return grad_CV


def _kl(log_q_CV: Tensor, target: Target) -> Tensor:
    assert target.teacher_CV is not None and target.teacher_entropy_C is not None
    return -target.teacher_entropy_C - torch.linalg.vecdot(target.teacher_CV, log_q_CV)


def _kl_gradient(log_q_CV: Tensor, target: Target) -> Tensor:
    assert target.teacher_CV is not None
    return log_q_CV.exp_().sub_(target.teacher_CV)


def _lk(log_q_CV: Tensor, target: Target) -> Tensor:
    assert target.teacher_CV is not None
    accepted_C = torch.minimum(target.teacher_CV, log_q_CV.exp()).sum(-1)
    weight_C = torch.exp(-_SHARPNESS * accepted_C)
    return weight_C * _kl(log_q_CV, target) + (1 - weight_C) * (1 - accepted_C)


def _lk_gradient(log_q_CV: Tensor, target: Target) -> Tensor:
    p_CV, q_CV = target.teacher_CV, log_q_CV.exp_()
    assert p_CV is not None
    weight_C1 = torch.exp(-_SHARPNESS * torch.minimum(p_CV, q_CV).sum(-1, keepdim=True))
    below_CV = (q_CV < p_CV) * q_CV
    accepted_grad_CV = below_CV - q_CV * below_CV.sum(-1, keepdim=True)
    return weight_C1 * (q_CV - p_CV) - (1 - weight_C1) * accepted_grad_CV


LOSSES = {
    "kl": Loss(True, _kl, _kl_gradient),
    "ce": Loss(False, _ce, _ce_gradient),
    "lk": Loss(True, _lk, _lk_gradient),
}
