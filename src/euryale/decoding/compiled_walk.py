"""The accept walk in one call of C++ (kernels/cpu/walk.cpp), where the base is read by compiled products.

Letters: B batch, N nodes, V vocabulary.
"""

import ctypes
from collections.abc import Callable

import torch
from torch import Tensor

from euryale.base.base import Base
from euryale.base.compiled_llama import CompiledLlama
from euryale.decoding.accept import VerifyOutput, Walk, walk_exact
from euryale.decoding.drafters.interface import Draft
from euryale.kernels.cpu.compile import load_library


class _Walk(ctypes.Structure):
    """struct Walk of walk.cpp."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("scores", "tokens", "parents", "is_real")),
        *((name, ctypes.c_void_p) for name in ("targets", "is_accepted", "is_finite")),
        *((name, ctypes.c_int32) for name in ("B", "N", "V", "shares_shape", "is_bfloat16", "threads")),
    ]


def walk_of(base: Base) -> Walk:
    """The quickest walk for this base."""
    return CompiledWalk() if isinstance(base.forward(), CompiledLlama) else walk_exact


class CompiledWalk:
    """As walk_exact."""

    def __init__(self) -> None:
        """Raises UserError where there is no C++ compiler."""
        self._walk: Callable[..., None] = load_library().euryale_walk

    def __call__(self, draft: Draft, scores_BNV: Tensor) -> VerifyOutput:
        if scores_BNV.dtype not in (torch.float32, torch.bfloat16):
            return walk_exact(draft, scores_BNV)
        B, N, V = scores_BNV.shape
        scores_BNV, tokens_BN = scores_BNV.contiguous(), draft.tokens_BN.contiguous()
        parents_RN = draft.shape.parents_RN.contiguous()
        is_real_BN = None if draft.is_real_BN is None else draft.is_real_BN.contiguous()
        targets_BN = torch.empty(B, N, dtype=torch.long)
        is_accepted_BN, is_finite_BN = torch.empty(2, B, N, dtype=torch.bool).unbind()
        walk = _Walk(
            scores_BNV.data_ptr(), tokens_BN.data_ptr(), parents_RN.data_ptr(),
            None if is_real_BN is None else is_real_BN.data_ptr(), targets_BN.data_ptr(), is_accepted_BN.data_ptr(),
            is_finite_BN.data_ptr(), B, N, V, len(parents_RN) == 1, scores_BNV.dtype == torch.bfloat16,
            torch.get_num_threads(),
        )  # fmt: skip
        self._walk(ctypes.byref(walk))
        return VerifyOutput(targets_BN, is_accepted_BN, is_finite_BN)
