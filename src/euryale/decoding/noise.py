"""Keyed Gumbel noise: a sampled text depends on its seed alone.

Sampling a token is argmax(logits / T + Gumbel noise) (the Gumbel-max trick). Here the noise of a token is a pure
function of (seed, absolute position, token id): a 32-bit hash of the three. The verifier draws the same token in every
tree, batch and order; and a drafter that ranks its candidates with the same noise guesses the draw, not only the
distribution.

Letters: B batch, W positions kept, X of them at a time, V vocabulary.
"""

from collections.abc import Sequence
from functools import cache
from numbers import Integral

import torch
from torch import Tensor

from euryale.decoding.compiled_noise import compiled_noise
from euryale.errors import UserError

_MASK = 0xFFFFFFFF
_IN_CACHE = 1 << 15  # numbers of 8 bytes, two of each
_WINDOW = 8  # positions kept, at least: few kernel calls a token, and 4 MB a row at a vocabulary of 128 k


def _mix_int(x: int) -> int:
    """The finaliser below for a Python integer."""
    x &= _MASK
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _MASK
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _MASK
    return x ^ (x >> 16)


def _mix(x: Tensor, spare: Tensor) -> None:
    """In place: a bijection of 32-bit integers (held in int64) that flips half of the bits for any change of one.

    The constants are those of C. Wellons' hash prospector ("lowbias32"). spare: of the same shape, overwritten.
    """
    x.bitwise_xor_(torch.bitwise_right_shift(x, 16, out=spare)).mul_(0x7FEB352D).bitwise_and_(_MASK)
    x.bitwise_xor_(torch.bitwise_right_shift(x, 15, out=spare)).mul_(0x846CA68B).bitwise_and_(_MASK)
    x.bitwise_xor_(torch.bitwise_right_shift(x, 16, out=spare))


@cache
def _mixed_tokens(vocab_size: int, device: torch.device) -> Tensor:
    tokens_V = torch.arange(vocab_size, device=device).add_(0x27D4EB2F).bitwise_and_(_MASK)
    _mix(tokens_V, torch.empty_like(tokens_V))
    return tokens_V


def gumbel(seed: int, first_position: int, num_positions: int, vocab_size: int, device: torch.device) -> Tensor:
    """Standard Gumbel noise [num_positions, vocab_size], float32."""
    noise_WV = torch.empty(num_positions, vocab_size, dtype=torch.float32, device=device)
    fill_gumbel(noise_WV, seed, first_position)
    return noise_WV


def fill_gumbel(noise_WV: Tensor, seed: int, first_position: int) -> None:
    """Overwrites noise_WV, contiguous, with the noise of W positions.

    The one place where it is chosen how noise is made, for trees, plain decoding and what is compared with them: two
    ways in one process could break a tie in two. Steps on a GPU alone make their own (device_verify.py).
    """
    compiled = compiled_noise() if noise_WV.device.type == "cpu" else None
    if compiled is None:
        fill_by_torch(noise_WV, seed, first_position)
    else:
        compiled(noise_WV, seed, first_position)


def fill_by_torch(noise_WV: Tensor, seed: int, first_position: int) -> None:
    """The same on every device, and what noise.cpp is compared with.

    Computed in float64: float32 has no room for the uniform numbers next to 1 that win the argmax. On a CPU some
    positions at a time, in place, so that all that is read and written stays in its cache.
    """
    device, (num_positions, vocab_size) = noise_WV.device, noise_WV.shape
    key = _mix_int(seed & _MASK) ^ _mix_int((seed >> 32) + 0x9E3779B9)
    positions = [
        _mix_int(_mix_int(p + 0x85EBCA6B) ^ key) for p in range(first_position, first_position + num_positions)
    ]
    tokens_V = _mixed_tokens(vocab_size, device)
    positions_W1 = torch.tensor(positions, device=device)[:, None]
    size = max(1, _IN_CACHE // vocab_size) if device.type == "cpu" else num_positions
    for start in range(0, num_positions, size):
        hashed_XV = positions_W1[start : start + size] ^ tokens_V
        spare_XV = torch.empty_like(hashed_XV)
        _mix(hashed_XV, spare_XV)
        _mix(hashed_XV, spare_XV)
        uniform_XV = spare_XV.view(torch.float64).copy_(hashed_XV).add_(0.5).div_(2**32)
        noise_WV[start : start + size] = uniform_XV.log_().neg_().log_().neg_()


def check_seeds(seeds: Sequence[int]) -> None:
    """Raises UserError for a number that is not a seed."""
    for seed in seeds:
        if not isinstance(seed, Integral) or not 0 <= seed < 2**63:
            raise UserError(f"seed must be a whole number from 0 to 2**63 - 1; got {seed}.")


def stream_seed(seed: int, stream: int) -> int:
    """The seed of noise that is independent of the seed's own; stream 1 and up."""
    return ((int(seed) + 1) * 0x9E3779B97F4A7C15 + stream * 0xD1B54A32D192ED03) % 2**63


class KeyedNoise:
    """The noise of the live rows around the positions they are at, made a window of positions at a time."""

    def __init__(self, num_rows: int, vocab_size: int, device: torch.device) -> None:
        """num_rows: that live at once, at most."""
        self.seeds: list[int] = []
        self.vocab_size = vocab_size
        self.device = device
        self._starts: list[int] = []
        self._window = torch.empty(num_rows, 0, vocab_size, dtype=torch.float32, device=device)

    def add(self, row: int, seed: int) -> None:
        """Makes `row` live: an ended row's place, or the next after the last."""
        check_seeds([seed])
        self.seeds[row : row + 1] = [seed]
        self._starts[row : row + 1] = [-1]

    def swap_remove(self, row: int) -> None:
        """Removes an ended row; the last row takes its slot."""
        seed, start = self.seeds.pop(), self._starts.pop()
        if row < len(self.seeds):
            self.seeds[row], self._starts[row] = seed, start
            self._window[row] = self._window[len(self.seeds)]

    def at(self, first_positions: Sequence[int], num_positions: int) -> Tensor:
        """[B, num_positions, V]: row b's noise at its first position and those after it. A view; do not write."""
        W = max(_WINDOW, 2 * num_positions, self._window.shape[1])
        if self._window.shape[1] < W:
            self._window = self._window.new_empty(len(self._window), W, self.vocab_size)
            self._starts = [-1] * len(self.seeds)
        for row, first in enumerate(first_positions):
            start = self._starts[row]
            if start < 0 or first < start or first + num_positions > start + W:
                self._begin_window(row, first)
        offsets = [first - start for first, start in zip(first_positions, self._starts, strict=True)]
        if len(set(offsets)) == 1:
            return self._window[: len(offsets), offsets[0] : offsets[0] + num_positions]
        index_BP = torch.tensor(offsets, device=self.device)[:, None] + torch.arange(num_positions, device=self.device)
        return self._window[torch.arange(len(offsets), device=self.device)[:, None], index_BP]

    def _begin_window(self, row: int, first: int) -> None:
        """Makes the row's window begin at `first`. What it holds of that, less than half, moves to its beginning."""
        window_WV, start = self._window[row], self._starts[row]
        W = len(window_WV)
        num_kept = max(0, start + W - first) if 0 <= start <= first else 0
        window_WV[:num_kept] = window_WV[W - num_kept :]
        fill_gumbel(window_WV[num_kept:], int(self.seeds[row]), first + num_kept)
        self._starts[row] = first
