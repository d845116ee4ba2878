"""Equality of float32 results that were added in another order: on other processors, or by another way."""

import torch
from torch import Tensor


def assert_same_sums(found: Tensor, expected: Tensor, roundings: int = 4096) -> None:
    """Fails where two tensors differ by more than so many roundings (half an eps each) of the largest entry.

    Kernels choose the order of a sum by the processor: a sum of n terms then differs by up to n roundings of the sizes
    of its terms, and layers after it pass that on. States of a small base were seen 2,000 apart on one processor with
    AMX and 500 on one with AVX-512; what a wrong matrix, mask or position changes is 10,000,000 and more. So the size
    of the numbers decides, not a constant.
    """
    assert found.shape == expected.shape and found.dtype == expected.dtype
    limit = roundings * torch.finfo(found.dtype).eps / 2 * float(expected.abs().max())
    worst = float((found - expected).abs().max())
    assert worst <= limit, f"{worst:.2e} apart, and {limit:.2e} is the limit"
