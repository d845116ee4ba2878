"""The noise is a pure function of (seed, position, token), and it is Gumbel noise.

The statistical tests are deterministic (fixed seeds), so a threshold is passed or failed for good; each states how
unlikely a right generator was to miss it, and what a wrong one would show.
"""

import math
import random

import pytest
import torch
from torch import Tensor

from euryale.decoding.noise import KeyedNoise, fill_by_torch, gumbel
from euryale.errors import UserError

CPU = torch.device("cpu")


def plain_gumbel(seed: int, first_position: int, num_positions: int, vocab_size: int) -> Tensor:
    """The slow twin: each operation makes a tensor of its own, of all positions at once."""

    def mix(x: Tensor) -> Tensor:
        x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
        x = ((x ^ (x >> 15)) * 0x846CA68B) & 0xFFFFFFFF
        return x ^ (x >> 16)

    seeds = mix(torch.tensor([seed & 0xFFFFFFFF, ((seed >> 32) + 0x9E3779B9) & 0xFFFFFFFF]))
    positions_W = torch.arange(first_position, first_position + num_positions) + 0x85EBCA6B & 0xFFFFFFFF
    positions_W1 = mix(mix(positions_W) ^ seeds[0] ^ seeds[1])[:, None]
    tokens_V = mix(torch.arange(vocab_size) + 0x27D4EB2F & 0xFFFFFFFF)
    uniform_WV = (mix(mix(positions_W1 ^ tokens_V)).double() + 0.5) / 2**32
    return -(-uniform_WV.log()).log().float()


@pytest.mark.parametrize("vocab_size", [1, 11, 1024, 4097, 40_000])
def test_noise_in_place_is_that_of_plain_operations(vocab_size: int) -> None:
    for seed, first, num in ((0, 0, 1), (2**63 - 1, 17, 32), (2**40 + 5, 1000, 9)):
        noise_WV = torch.empty(num, vocab_size)
        fill_by_torch(noise_WV, seed, first)
        assert torch.equal(noise_WV, plain_gumbel(seed, first, num, vocab_size))


def uniform(noise: Tensor) -> Tensor:
    """The uniform numbers that Gumbel noise was made of."""
    return (-(-noise.double()).exp()).exp()


def kolmogorov(sample: Tensor) -> float:
    """sqrt(n) times the greatest distance between the sample's distribution function and the uniform one."""
    ordered = sample.flatten().sort().values
    n = len(ordered)
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    return math.sqrt(n) * max((steps[1:] - ordered).max().item(), (ordered - steps[:-1]).max().item())


def test_noise_does_not_depend_on_window_or_vocabulary() -> None:
    whole = gumbel(seed=7, first_position=3, num_positions=50, vocab_size=40, device=CPU)
    assert whole.dtype == torch.float32 and whole.isfinite().all()
    for first, num, vocab_size in ((3, 1, 40), (10, 20, 40), (52, 1, 5), (30, 7, 13)):
        part = gumbel(7, first, num, vocab_size, CPU)
        assert torch.equal(part, whole[first - 3 : first - 3 + num, :vocab_size])


def test_rows_get_their_own_noise_whatever_the_batch_and_the_way_there() -> None:
    rng = random.Random(0)
    for _ in range(30):
        seeds = [rng.choice([0, 1, 2**31, 2**32, 2**40 + 5, 2**63 - 1]) for _ in range(rng.randint(1, 4))]
        keyed = KeyedNoise(len(seeds), 11, CPU)
        for row, seed in enumerate(seeds):
            keyed.add(row, seed)
        at = [rng.randrange(40) for _ in seeds]
        for _ in range(25):  # rows move on at their own pace, over the edges of the windows, and once back
            num = rng.choice([1, 3, 5, 40])
            expected = torch.stack([gumbel(s, first, num, 11, CPU) for s, first in zip(seeds, at, strict=True)])
            assert torch.equal(keyed.at(at, num), expected)
            at = [max(0, first + rng.choice([0, 1, 1, 2, 4, 30, -20])) for first in at]


def test_seed_position_and_token_each_change_the_noise() -> None:
    low, high = gumbel(1, 0, 64, 64, CPU), gumbel(1 + 2**32, 0, 64, 64, CPU)
    for other in (gumbel(2, 0, 64, 64, CPU), high, gumbel(1, 64, 64, 64, CPU), low.T):
        assert (low == other).sum() <= 64  # the diagonal of the transpose; else 4096 x 2^-32 by chance
    assert low.unique().numel() > 4000


@pytest.mark.parametrize("seed", [-1, 2**63, 2**70])
def test_a_seed_out_of_range_is_refused(seed: int) -> None:
    with pytest.raises(UserError, match="seed must be a whole number from 0 to"):
        KeyedNoise(2, 5, CPU).add(0, seed)


def test_the_largest_seed_and_a_far_position_work() -> None:
    noise = gumbel(2**63 - 1, 10_000_000, 4, 128_256, CPU)
    assert noise.isfinite().all() and abs(noise.mean().item() - 0.5772) < 0.01


@pytest.mark.parametrize(
    ("seeds", "positions", "vocab_size"),
    [(1, 400, 500), (5_000, 2, 5), (4, 10, 5_000), (300, 300, 2)],
    ids=["one long text", "many seeds", "a wide vocabulary", "two tokens"],
)
def test_noise_is_uniform_in_every_direction(seeds: int, positions: int, vocab_size: int) -> None:
    """Kolmogorov's statistic exceeds 2.23 with probability 1e-4 for a right generator; a shift of 1% of 5e4 numbers
    gives 2.24, of 2e5 4.5."""
    sample = uniform(torch.stack([gumbel(s, 5, positions, vocab_size, CPU) for s in range(seeds)]))
    assert kolmogorov(sample) < 2.23
    n = sample.numel()
    assert abs(sample.mean().item() - 0.5) < 4 * math.sqrt(1 / 12 / n)
    assert abs(sample.var().item() - 1 / 12) < 4 * math.sqrt(1 / 180 / n)


def test_neighbours_in_every_direction_are_uncorrelated() -> None:
    """A correlation's standard deviation is 1 / sqrt(n); 4.5 of them are missed by chance once in 150,000 times."""
    u = uniform(torch.stack([gumbel(s, 0, 60, 60, CPU) for s in range(60)])) - 0.5
    rows, columns = torch.triu_indices(60, 60, offset=1)
    shifted = {
        "seed": (u[1:], u[:-1]),
        "position": (u[:, 1:], u[:, :-1]),
        "token": (u[:, :, 1:], u[:, :, :-1]),
        "position and token": (u[:, 1:, 1:], u[:, :-1, :-1]),
        "position against token": (u[:, rows, columns], u[:, columns, rows]),
        "seed and position": (u[1:, 1:], u[:-1, :-1]),
    }
    for name, (a, b) in shifted.items():
        assert abs((a * b).mean().item() * 12) < 4.5 / math.sqrt(a.numel()), name


@pytest.mark.parametrize("over", ["seeds", "positions"])
def test_gumbel_max_draws_from_the_softmax(over: str) -> None:
    """Chi-square of 6 tokens: 5 degrees of freedom exceed 25.7 with probability 1e-4.

    A generator that takes 5% of the likeliest token's share p = 0.56 away adds num x 0.05^2 x p / (1 - p) on
    average: 47 over 15,000 seeds, which fails 999 times in 1,000.
    """
    logits = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -2.0])
    num = 15_000 if over == "seeds" else 60_000
    if over == "positions":
        noise = gumbel(3, 0, num, 6, CPU)
    else:
        noise = torch.cat([gumbel(seed, 17, 1, 6, CPU) for seed in range(num)])
    for temperature in (0.7, 1.0, 1.3):
        counts = (logits / temperature + noise).argmax(-1).bincount(minlength=6).double()
        expected = (logits.double() / temperature).softmax(-1) * num
        assert ((counts - expected) ** 2 / expected).sum().item() < 25.7, temperature


def test_pairs_of_consecutive_draws_are_independent() -> None:
    """Chi-square of 9 pairs of tokens: 8 degrees of freedom exceed 31.8 with probability 1e-4."""
    probabilities = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    num = 30_000
    draws = (probabilities.log() + gumbel(11, 0, 2 * num, 3, CPU)).argmax(-1).view(num, 2)
    counts = (draws[:, 0] * 3 + draws[:, 1]).bincount(minlength=9).double()
    expected = (probabilities[:, None] * probabilities).flatten() * num
    assert ((counts - expected) ** 2 / expected).sum().item() < 31.8
