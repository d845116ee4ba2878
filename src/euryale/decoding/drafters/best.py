"""The best candidates of each parent: torch's own top-k, or the kernel where the base decodes through kernels.

Which of equal scores comes first does not change a text: candidates are only guesses.

Letters: V vocabulary.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from euryale.base.base import Base
from euryale.base.kernel_layer import backend_for
from euryale.kernels.registry import choose

TopK = Callable[
    [Tensor, int], tuple[Tensor, Tensor]
]  # scores [..., V], num -> values and places [..., num], best first


def torch_top_k(scores_xV: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """torch's own, which takes the best alone by a quicker way."""
    if num == 1:
        values_x1, places_x1 = scores_xV.max(-1, keepdim=True)
        return values_x1, places_x1
    values_xK, places_xK = scores_xV.topk(num)
    return values_xK, places_xK


def top_k_of(base: Base) -> TopK:
    """The kernel's on a card, and where base.backend names one."""
    if base.device.type != "cuda" and base.forward_settings.backend == "auto":
        return torch_top_k
    return _Kernel(base)


class _Kernel:
    def __init__(self, base: Base) -> None:
        self._device, self._backend = base.device, base.forward_settings.backend
        self._chosen: dict[int, Any] = {}  # by number of candidates

    def __call__(self, scores_xV: Tensor, num: int) -> tuple[Tensor, Tensor]:
        if num not in self._chosen:
            choice = choose("top_k", self._device, backend_for("top_k", self._backend), num=num)
            is_slow = choice.backend == "torch" and self._backend == "auto"  # it sorts the whole vocabulary
            self._chosen[num] = None if is_slow else choice.function
        top_k = self._chosen[num]
        if top_k is None:
            return torch_top_k(scores_xV, num)
        values_MK, places_MK = top_k(scores_xV.flatten(0, -2).contiguous(), num)
        return values_MK.view(*scores_xV.shape[:-1], num), places_MK.view(*scores_xV.shape[:-1], num)
