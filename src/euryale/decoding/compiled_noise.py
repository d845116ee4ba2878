"""The keyed noise in one call of C++ (kernels/cpu/noise.cpp), on a processor with a C++ compiler.

Letters: W positions, V vocabulary.
"""

import ctypes
import logging
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from euryale.errors import UserError
from euryale.kernels.cpu.compile import load_noise

log = logging.getLogger(__name__)


class _Noise(ctypes.Structure):
    """struct Noise of noise.cpp."""

    _fields_ = [
        ("noise", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("seed", "first_position")),
        *((name, ctypes.c_int32) for name in ("W", "V", "threads")),
    ]


class CompiledNoise:
    """As noise.fill_by_torch.

    Both round to float32 what is right to a unit in the last place of a float64. So of all 2^32 numbers that noise can
    be 18 differ, by the last bit of a float32 below 0.004. Compilers and processors that make one instruction of a
    product and a sum, and those that do not, differ from each other in 2 (torch with MKL, g++ 12, clang++ 14, x86).
    """

    def __init__(self) -> None:
        """Raises UserError where there is no C++ compiler."""
        self._fill: Callable[..., None] = load_noise().euryale_noise

    def __call__(self, noise_WV: Tensor, seed: int, first_position: int) -> None:
        assert noise_WV.dtype == torch.float32 and noise_WV.is_contiguous(), noise_WV.dtype
        noise = _Noise(noise_WV.data_ptr(), seed, first_position, *noise_WV.shape, torch.get_num_threads())
        self._fill(ctypes.byref(noise))


@cache
def compiled_noise() -> CompiledNoise | None:
    """None: this process makes its noise by torch. One answer for all that draws in it."""
    try:
        return CompiledNoise()
    except UserError as error:
        log.info("torch makes the noise of sampled tokens, more slowly than compiled C++: %s", error)
        return None
