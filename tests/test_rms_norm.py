"""Is the quick norm torch's norm?"""

import pytest
import torch
from torch.nn.functional import rms_norm

from euryale.kernels.rms_norm import RmsNorm


@pytest.mark.parametrize("size", [0.0, 1e-4, 1.0, 1e4], ids=["zero", "tiny", "usual", "large"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=["f32", "f64", "bf16"])
def test_both_parts_are_the_norm_that_torch_takes(dtype: torch.dtype, size: float) -> None:
    """Where a row is tiny, eps decides; the scaled part alone is what a matrix with scaled columns expects."""
    torch.manual_seed(0)
    weight_D, x_MD = torch.rand(48, dtype=dtype), size * torch.randn(5, 48, dtype=dtype)
    norm, expected_MD = RmsNorm(weight_D, 1e-6), rms_norm(x_MD, (48,), weight_D, 1e-6)
    torch.testing.assert_close(norm.whole(x_MD), expected_MD, rtol=1e-5, atol=1e-6)
    matrix_DO = torch.randn(48, 7, dtype=dtype)
    scaled_DO = matrix_DO if norm.scale is None else norm.scale[:, None] * matrix_DO
    torch.testing.assert_close(norm(x_MD) @ scaled_DO, expected_MD @ matrix_DO, rtol=1e-4, atol=1e-4)
