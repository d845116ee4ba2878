"""Row counts at which a product gives every row the same bits, proven on this machine.

A row of x W^T is a sum over inputs, and a kernel chosen for another number of rows may add it in another order. Plain
decoding multiplies one row and a tree many, so a pass is padded to a row count that was found to agree with blocks of
16 rows. The proof is one call per count and matrix shape (milliseconds, once per process and thread count) on numbers
that cancel: what is left of each sum is its rounding, which shows any other order.

Letters: M rows, I inputs, O outputs.
"""

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from euryale.kernels.packed_linear import LinearShape

REFERENCE = 16  # rows of a block that every other count is compared with
# From 4 on: fewer rows are no quicker (SmolLM2 in bfloat16 on Zen 4: 1 row 26 ms, 2 rows 27, 4 rows 21).
_COUNTS = (4, 6, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64)
_MOST = _COUNTS[-1]  # longer passes are multiplied in blocks of so many rows
_TILE = 256  # outputs that differ; the rest repeats them


class RowCounts:
    """The row counts that agree for all matrices of a model; none: nothing is guaranteed."""

    def __init__(self, counts: Sequence[int]) -> None:
        self.counts = tuple(sorted(counts))
        self.is_exact = REFERENCE in self.counts
        self.most = self.counts[-1] if self.is_exact else 1 << 30

    def padded(self, num_rows: int) -> int:
        """Rows that a pass of num_rows is padded to: whole blocks of `most`, then the next count that agrees."""
        if not self.is_exact:
            return num_rows
        whole, rest = divmod(num_rows, self.most)
        return whole * self.most + (next(count for count in self.counts if count >= rest) if rest else 0)

    def in_blocks(self, linear: Callable[..., Tensor], *rows: Tensor) -> Tensor:
        """linear(*rows) with at most `most` rows a call; the row count must be `padded`."""
        if len(rows[0]) <= self.most:
            return linear(*rows)
        return torch.cat([linear(*block) for block in zip(*(x.split(self.most) for x in rows), strict=True)])


def common_counts(shapes: Sequence[LinearShape]) -> RowCounts:
    """The counts that agree for every shape."""
    threads = torch.get_num_threads()
    found = [agreeing_counts(shape, threads) for shape in dict.fromkeys(shapes)]
    return RowCounts([count for count in _COUNTS if all(count in counts for counts in found)])


@cache
@torch.no_grad()
def agreeing_counts(shape: LinearShape, threads: int) -> frozenset[int]:
    """The row counts whose rows are bit-equal to those of blocks of 16, wherever a row stands in its block.

    `threads` is torch's number of threads: another number divides the work in another way.
    """
    kind, num_inputs, num_outputs, dtype, has_bias = shape
    generator = torch.Generator().manual_seed(0)
    order_I = torch.randperm(num_inputs, generator=generator)
    weight_OI = _halves(min(num_outputs, _TILE), order_I, 1.0, generator)
    weight_OI = weight_OI.repeat(-(-num_outputs // _TILE), 1)[:num_outputs].to(dtype)
    x_MI = _halves(_MOST, order_I, -1.0, generator).to(dtype)
    sum_MO = torch.zeros(_MOST, num_outputs, dtype=dtype)
    linear = kind(weight_OI.contiguous(), torch.zeros(num_outputs, dtype=dtype) if has_bias else None)

    def found(start: int, stop: int) -> Tensor:
        return torch.cat([linear(x_MI[start:stop]), linear.onto(sum_MO[start:stop], x_MI[start:stop])], -1)

    expected = torch.cat([found(start, start + REFERENCE) for start in range(0, _MOST, REFERENCE)])
    starts = {count: (REFERENCE + 3) % (_MOST - count + 1) for count in _COUNTS}  # across the blocks of the reference
    return frozenset(m for m, at in starts.items() if torch.equal(found(at, at + m), expected[at : at + m]))


def _halves(rows: int, order_I: Tensor, sign: float, generator: torch.Generator) -> Tensor:
    """[rows, I]: random numbers at half of the places, the same times `sign` at the other half."""
    half = len(order_I) // 2
    numbers = torch.randn(rows, half, generator=generator, dtype=torch.float32)
    out = numbers.new_zeros(rows, len(order_I))
    out[:, order_I[:half]], out[:, order_I[half : 2 * half]] = numbers, sign * numbers
    return out
