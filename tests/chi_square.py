"""Chi-square test of counts against a distribution. Not a test file itself."""

from torch import Tensor, cat


def chi_square(counts: Tensor, expected: Tensor) -> tuple[float, float]:
    """Pearson's statistic, and what chance exceeds with probability 1e-4 (Wilson and Hilferty's approximation).

    Cells that are expected less than 5 times count as one.
    """
    counts, expected = counts.flatten().double(), expected.flatten().double()
    is_frequent = expected >= 5
    cells = [(counts[is_frequent], expected[is_frequent])]
    if not is_frequent.all():
        cells.append((counts[~is_frequent].sum()[None], expected[~is_frequent].sum()[None]))
    counts, expected = (cat(parts) for parts in zip(*cells, strict=True))
    df = len(counts) - 1
    threshold = df * (1 - 2 / (9 * df) + 3.72 * (2 / (9 * df)) ** 0.5) ** 3
    return ((counts - expected) ** 2 / expected.clamp(min=1e-9)).sum().item(), threshold
