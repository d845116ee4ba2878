"""NF4 products of the Triton kernel in the interpreter against their specification."""

import pytest
import torch
from nf4_weights import random_nf4

from euryale.kernels import reference
from euryale.kernels.triton.nf4_linear import nf4_linear, num_splits

CASES = {
    "one row": (1, 32, 128, 1),
    "outputs beyond a block, splits of unequal size": (5, 136, 320, 2),
    "all 16 rows": (16, 24, 192, 3),
    "32 rows, a split with nothing to do": (27, 33, 128, 4),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
@pytest.mark.parametrize("nested", [True, False], ids=["nested", "plain"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_it_is_the_specification(case: tuple[int, int, int, int], nested: bool, dtype: torch.dtype) -> None:
    """Sums of a few hundred products in another order: 1e-6 of their size in float32; float16 rounds the result."""
    torch.manual_seed(case[0])
    M, num_outputs, num_inputs, splits = case
    weight, _ = random_nf4(num_outputs, num_inputs, nested)
    x, bias = torch.randn(M, num_inputs).to(dtype), torch.randn(num_outputs).to(dtype)
    got = nf4_linear(x, weight, bias, splits=splits)
    want = reference.nf4_linear(x, weight, bias)
    assert (got - want).float().norm() < (1e-6 if dtype == torch.float32 else 1e-3) * want.float().norm()


def test_a_row_does_not_depend_on_the_others() -> None:
    weight, _ = random_nf4(130, 256, True)
    x = torch.randn(16, 256)
    together = nf4_linear(x, weight, splits=2)
    for row in (0, 7, 15):
        assert torch.equal(nf4_linear(x[row : row + 1], weight, splits=2)[0], together[row])


def test_splits_fill_a_card_and_leave_work_in_each() -> None:
    assert [num_splits(*shape) for shape in ((4096, 4096), (6144, 4096), (28672, 4096), (4096, 14336), (64, 64))] == [
        16, 8, 2, 16, 1,
    ]  # fmt: skip
