"""The accept walk in one call of C++ (kernels/cpu/walk.cpp), where the base is read by compiled products.

Letters: B batch, R rows of a shape (1 or B), P depths, N nodes, V vocabulary.
"""

import ctypes
from collections.abc import Callable

import torch
from torch import Tensor

from euryale.base.base import Base
from euryale.base.compiled_llama import CompiledLlama
from euryale.decoding.accept import VerifyOutput, Walk, walk_exact
from euryale.decoding.drafters.interface import Draft
from euryale.decoding.random_streams import StepNoise
from euryale.decoding.sampling_batch import SamplingBatch, final_scores
from euryale.kernels.cpu.compile import load_library


class _Walk(ctypes.Structure):
    """struct Walk of walk.cpp."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("scores", "tokens", "parents", "depths", "is_real")),
        *((name, ctypes.c_void_p) for name in ("noise", "temperatures", "is_sampled")),
        *((name, ctypes.c_void_p) for name in ("targets", "is_accepted", "is_finite")),
        *((name, ctypes.c_int64) for name in ("noise_row", "noise_level")),
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

    def __call__(self, draft: Draft, logits_BNV: Tensor, settings: SamplingBatch, noise: StepNoise) -> VerifyOutput:
        if logits_BNV.dtype not in (torch.float32, torch.bfloat16):
            return walk_exact(draft, logits_BNV, settings, noise)
        if not settings.has_sampled:
            return self._walk_by(draft, logits_BNV)
        if settings.has_filters:
            return self._walk_by(draft, final_scores(logits_BNV, settings, noise.drawing(draft.shape.depths_RN)))
        return self._walk_by(draft, logits_BNV, settings, noise.drawing_BPV)

    def _walk_by(
        self,
        draft: Draft,
        scores_BNV: Tensor,
        settings: SamplingBatch | None = None,
        noise_BPV: Tensor | None = None,
    ) -> VerifyOutput:
        """noise_BPV: what rows at T > 0 add to their scores, divided by their temperatures; None: that is done."""
        B, N, V = scores_BNV.shape
        scores_BNV, tokens_BN = scores_BNV.contiguous(), draft.tokens_BN.contiguous()
        parents_RN, depths_RN = draft.shape.parents_RN.contiguous(), draft.shape.depths_RN.contiguous()
        is_real_BN = None if draft.is_real_BN is None else draft.is_real_BN.contiguous()
        temperature_B, is_sampled_B, row_stride, level_stride = None, None, 0, 0
        if noise_BPV is not None and settings is not None:
            assert noise_BPV.dtype == torch.float32 and noise_BPV.stride(2) == 1, noise_BPV.stride()
            row_stride, level_stride, _ = noise_BPV.stride()
            temperature_B = settings.temperature_B11.flatten().contiguous()
            is_sampled_B = settings.is_sampled_B11.flatten().contiguous()
        targets_BN = torch.empty(B, N, dtype=torch.long)
        is_accepted_BN, is_finite_BN = torch.empty(2, B, N, dtype=torch.bool).unbind()
        given = (scores_BNV, tokens_BN, parents_RN, depths_RN, is_real_BN, noise_BPV, temperature_B, is_sampled_B)
        walk = _Walk(
            *(None if part is None else part.data_ptr() for part in given), targets_BN.data_ptr(),
            is_accepted_BN.data_ptr(), is_finite_BN.data_ptr(), row_stride, level_stride, B, N, V, len(parents_RN) == 1,
            scores_BNV.dtype == torch.bfloat16, torch.get_num_threads(),
        )  # fmt: skip
        self._walk(ctypes.byref(walk))
        return VerifyOutput(targets_BN, is_accepted_BN, is_finite_BN)
