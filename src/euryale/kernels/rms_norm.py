"""Root-mean-square norm in few operations, and together with the matrix after it.

On a CPU torch's own is some ten operations, as many as the rest of a small layer. In float32 three do, because
x / sqrt(mean(x^2) + eps) = sqrt(D) x / sqrt(|x|^2 + D eps), and what every entry is multiplied with afterwards can
be multiplied into the columns of the next matrix instead. What heads read has such a norm without entries (normalise).

Letters: D width.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import rms_norm

NORMALISE_EPS = 1e-6


def normalise(vectors_xD: Tensor) -> Tensor:
    """Vectors [..., D] at root-mean-square 1, the scale at which heads read tokens and states."""
    return rms_norm(vectors_xD, vectors_xD.shape[-1:], eps=NORMALISE_EPS)


class RmsNorm:
    """A norm in two parts: a division, and after it the entries times `scale`; None: the division does it all."""

    def __init__(self, weight_D: Tensor, eps: float) -> None:
        self._weight, self._eps = weight_D.detach(), eps
        self.scale: Tensor | None = None
        # In 16 bits scaled matrices would be rounded once more, and the sum of squares needs float32.
        if weight_D.device.type == "cpu" and weight_D.dtype in (torch.float32, torch.float64):
            D = len(weight_D)
            self.scale = self._weight * D**0.5
            self._least = torch.tensor(D * eps, dtype=weight_D.dtype)

    def __call__(self, x_xD: Tensor) -> Tensor:
        """The division alone."""
        if self.scale is None:
            return rms_norm(x_xD, self._weight.shape, self._weight, self._eps)
        size_x1 = torch.linalg.vector_norm(x_xD, 2, -1, True)
        return x_xD / torch.addcmul(self._least, size_x1, size_x1).sqrt_()

    def whole(self, x_xD: Tensor) -> Tensor:
        """Both parts."""
        return self(x_xD) if self.scale is None else self(x_xD) * self.scale


def norm_of(module: Any, name: str) -> RmsNorm:
    """That of a transformers module."""
    norm = getattr(module, name)
    return RmsNorm(norm.weight, norm.variance_epsilon)
