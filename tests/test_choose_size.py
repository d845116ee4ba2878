"""A tree's size is chosen by a model of time, not by the luckiest of many noisy ratios."""

import itertools
import random

import pytest

from euryale.evaluation.choose_size import Measured, Size, choose_size, finalists, fit_times, isotonic

COUNTS = (1, 2, 3, 4, 6, 8, 12, 16)
SHAPES: dict[Size, tuple[int, int]] = {(n, d): (n, d) for n in COUNTS for d in range(1, 4) if d < n}
SHAPES |= {(1, None): (1, 0)}


def is_in_order(values: dict[Size, float]) -> bool:
    return all(
        values[a] <= values[b] * (1 + 1e-6)
        for a, b in itertools.permutations(values, 2)
        if SHAPES[a][0] <= SHAPES[b][0] and SHAPES[a][1] <= SHAPES[b][1]
    )


def test_in_one_dimension_the_fit_is_that_of_pooled_neighbours() -> None:
    shapes = [(n, 1) for n in range(6)]
    assert isotonic([1, 3, 2, 4, 3.5, 3], shapes) == pytest.approx([1, 2.5, 2.5, 3.5, 3.5, 3.5])
    assert isotonic([1, 2, 3], shapes[:3]) == [1, 2, 3]


@pytest.mark.parametrize("seed", range(3))
def test_no_values_in_order_are_nearer(seed: int) -> None:
    """The conditions of a projection on a cone: the rest is orthogonal to the fit, and at most so to any in order."""
    draw = random.Random(seed)
    shapes = list(SHAPES.values())
    values = [draw.gauss(0.0, 1.0) + 0.1 * n for n, _ in shapes]
    fitted = isotonic(values, shapes)
    assert is_in_order({size: 10 + value for size, value in zip(SHAPES, fitted, strict=True)})
    rest = [value - fit for value, fit in zip(values, fitted, strict=True)]
    assert sum(r * f for r, f in zip(rest, fitted, strict=True)) == pytest.approx(0, abs=1e-4)
    for n, depth in itertools.product(COUNTS, range(4)):
        step = [float(a >= n and b >= depth) for a, b in shapes]
        assert sum(r * s for r, s in zip(rest, step, strict=True)) <= 1e-4


def noisy_turns(true_ms: dict[Size, float], seed: int, repeats: int = 15) -> dict[Size, list[float]]:
    """A shared machine: every turn may be slow by itself, and whole rounds are."""
    draw = random.Random(seed)
    paces = [draw.choice((1.0, 1.0, 1.6)) for _ in range(repeats)]
    return {
        size: [ms * pace * draw.lognormvariate(0.0, 0.08) * draw.choice((1, 1, 1, 1.5)) for pace in paces]
        for size, ms in true_ms.items()
    }


TRUE_MS: dict[Size, float] = {size: 1.0 + 0.04 * n + 0.12 * depth for size, (n, depth) in SHAPES.items()}
TAU: dict[Size, float] = {size: 1 + 0.55 * depth * (1 - 1.5 / (n + 1)) for size, (n, depth) in SHAPES.items()}


def test_a_fitted_time_never_falls_with_nodes_or_depth() -> None:
    fitted = fit_times(noisy_turns(TRUE_MS, 5), SHAPES)
    assert is_in_order({size: measured.ms for size, measured in fitted.items()})
    raw = {size: measured.ms / TRUE_MS[size] for size, measured in fitted.items()}
    assert max(raw.values()) / min(raw.values()) < 1.25
    assert all(0 < measured.error_ms < 0.3 * measured.ms for measured in fitted.values())


def test_times_without_noise_are_left_as_they_are() -> None:
    fitted = fit_times({size: [ms] * 3 for size, ms in TRUE_MS.items()}, SHAPES)
    for size, measured in fitted.items():
        assert measured == (pytest.approx(TRUE_MS[size]), pytest.approx(0.0, abs=1e-12))


def test_a_slow_round_counts_for_all_its_sizes_alike() -> None:
    turns = {(1, None): [1.0, 2.0, 1.0, 4.0], (2, 1): [1.5, 3.0, 1.5, 6.0]}
    fitted = fit_times(turns, SHAPES)
    assert fitted[2, 1].ms / fitted[1, None].ms == pytest.approx(1.5)
    assert fitted[2, 1].error_ms == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("seed", range(12))
def test_the_choice_on_a_shared_machine_is_nearly_as_fast_as_the_best(seed: int) -> None:
    """Single ratios chose a tree of ratio 1.00 where another had 1.19."""
    times = fit_times(noisy_turns(TRUE_MS, seed), SHAPES)
    last = finalists(TAU, times, SHAPES)
    assert (1, None) in last and len(last) == 5
    again = fit_times(noisy_turns({size: TRUE_MS[size] for size in last}, 100 + seed), SHAPES)
    chosen = choose_size(TAU, again, SHAPES)
    speeds = {size: TAU[size] / ms for size, ms in TRUE_MS.items()}
    assert speeds[chosen] > 0.93 * max(speeds.values())


def test_of_equals_the_smaller_tree_is_chosen() -> None:
    sizes: list[Size] = [(1, None), (4, 2), (8, 2)]
    tau = dict(zip(sizes, (1.0, 2.0, 2.1), strict=True))
    clear = dict(zip(sizes, (Measured(1.0, 0.0), Measured(1.2, 0.0), Measured(1.2, 0.0)), strict=True))
    assert choose_size(tau, clear, SHAPES) == (8, 2)
    noisy = {size: measured._replace(error_ms=0.06) for size, measured in clear.items()}
    assert choose_size(tau, noisy, SHAPES) == (4, 2)
    alike = clear | {(8, 2): Measured(1.25, 0.0)}
    assert choose_size(tau, alike, SHAPES) == (4, 2), "within one percent"
    no_gain = dict(zip(sizes, (1.0, 1.2, 1.21), strict=True))
    assert choose_size(no_gain, clear, SHAPES) == (1, None)
