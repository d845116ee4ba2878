"""The quick norm is torch's norm."""

import pytest
import torch

from euryale.kernels.rms_norm import RmsNorm


@pytest.mark.parametrize("size", [0.0, 1e-4, 1.0, 1e4], ids=["zero", "tiny", "usual", "large"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=["f32", "f64", "bf16"])
def test_both_parts_are_the_norm_taken_in_float64(dtype: torch.dtype, size: float) -> None:
    """Where a row is tiny, eps decides; the scaled part alone is what a matrix with scaled columns expects.

    Each of the few operations rounds once, by at most half of the dtype's eps, and the sum of 48 squares a handful of
    times: 8 eps for each entry of the norm. A product of 48 terms differs by as much for each of them, and by as much
    again for its own rounding, relative to the sum of the sizes of its terms.
    """
    torch.manual_seed(0)
    weight_D, x_MD = torch.rand(48).to(dtype), (size * torch.randn(5, 48)).to(dtype)
    wide_MD = x_MD.double()
    truth_MD = wide_MD * (wide_MD.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * weight_D.double()
    norm, eps = RmsNorm(weight_D, 1e-6), torch.finfo(dtype).eps
    torch.testing.assert_close(norm.whole(x_MD).double(), truth_MD, rtol=8 * eps, atol=1e-30)
    matrix_DO = torch.randn(48, 7).to(dtype)
    scaled_DO = matrix_DO if norm.scale is None else norm.scale[:, None] * matrix_DO
    found_MO = (norm(x_MD) @ scaled_DO).double()
    sizes_MO = truth_MD.abs() @ matrix_DO.double().abs()
    assert ((found_MO - truth_MD @ matrix_DO.double()).abs() <= 8 * 2 * eps * sizes_MO).all()
