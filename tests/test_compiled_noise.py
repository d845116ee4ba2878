"""The noise that C++ makes is torch's, on every processor, in windows of any size and on any number of threads."""

import logging
import math
import platform
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from compilers import needs_compiler
from torch import Tensor

from euryale.decoding.compiled_noise import CompiledNoise, compiled_noise
from euryale.decoding.noise import _mix_int, fill_by_torch, gumbel
from euryale.kernels.cpu.compile import NOISE, library_for, load_noise, own_processor

CPU = torch.device("cpu")
IS_X86 = platform.machine() in ("x86_64", "AMD64")
TARGETS = {"its own": own_processor(), "the plainest": ("-O1", "-march=x86-64") if IS_X86 else ("-O1",)}
if IS_X86 and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):
    TARGETS["AVX2"] = ("-O1", "-march=haswell")
WINDOWS = [(0, 0, 3, 49_152), (2**63 - 1, 10_000_000, 2, 40_003), (2**40 + 5, 2**32 - 3, 600, 133)]


def compiled(seed: int, first: int, num: int, vocab_size: int, target: str = "its own") -> Tensor:
    """Of C++ for a processor, whatever this process makes its noise by."""
    fill = CompiledNoise()
    fill._fill = library_for(TARGETS[target], what=NOISE).euryale_noise
    noise_WV = torch.full((num, vocab_size), math.nan)
    fill(noise_WV, seed, first)
    return noise_WV


def by_torch(seed: int, first: int, num: int, vocab_size: int) -> Tensor:
    noise_WV = torch.full((num, vocab_size), math.nan)
    fill_by_torch(noise_WV, seed, first)
    return noise_WV


@needs_compiler
@pytest.mark.parametrize("target", TARGETS)
def test_it_is_the_noise_of_torch(target: str) -> None:
    """Both are right to a unit in the last place of a float64 before they are rounded. So of 3e5 numbers 1e-3 differ on
    average; next to zero, where the unit is one of the inner logarithm, by more than a float32's there."""
    different = 0
    for window in WINDOWS:
        found, expected = compiled(*window, target), by_torch(*window)
        torch.testing.assert_close(found, expected, rtol=2.0**-23, atol=4e-16)
        different += int((found != expected).sum())
    assert different <= 1


def seed_and_position_of(hashed: int) -> tuple[int, int]:
    """Where token 0 has this hash: its bijections backwards."""

    def unmix(x: int) -> int:
        x ^= x >> 16
        x = x * pow(0x846CA68B, -1, 2**32) % 2**32
        x ^= (x >> 15) ^ (x >> 30)
        x = x * pow(0x7FEB352D, -1, 2**32) % 2**32
        return x ^ (x >> 16)

    row = unmix(unmix(hashed)) ^ _mix_int(0x27D4EB2F)
    return 7, (unmix(unmix(row) ^ _mix_int(7) ^ _mix_int(0x9E3779B9)) - 0x85EBCA6B) % 2**32


@needs_compiler
@pytest.mark.parametrize("target", TARGETS)
def test_the_least_and_the_largest_hash_have_finite_noise(target: str) -> None:
    for hashed in (0, 1, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1):
        expected = -math.log(-math.log((hashed + 0.5) / 2**32))
        seed, position = seed_and_position_of(hashed)
        for found in (compiled(seed, position, 1, 1, target), by_torch(seed, position, 1, 1)):
            assert found.item() == torch.tensor(expected).item(), hashed
    assert expected > 22.8


@needs_compiler
@pytest.mark.parametrize("target", TARGETS)
def test_a_number_does_not_depend_on_what_is_made_with_it(target: str) -> None:
    """Vectors of 16 tokens in blocks of 512, the last of either cut short; what is next to the window stays."""
    whole = compiled(7, 3, 20, 1100, target)
    for vocab_size in (1, 2, 15, 16, 17, 511, 512, 513, 528, 1024, 1099):
        assert torch.equal(compiled(7, 3, 20, vocab_size, target), whole[:, :vocab_size])
    for first, num in ((3, 1), (4, 7), (22, 1)):
        assert torch.equal(compiled(7, first, num, 1100, target), whole[first - 3 : first - 3 + num])
    larger = torch.full((3, 517), -1.0)
    CompiledNoise()(larger[1:2], 7, 3)
    assert (larger[0::2] == -1).all() and not (larger[1] == -1).any()


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@needs_compiler
def test_two_threads_make_the_numbers_of_one(two_threads: None) -> None:
    found = compiled(5, 9, 5, 40_000)  # worth two
    torch.set_num_threads(1)
    assert torch.equal(found, compiled(5, 9, 5, 40_000))


@needs_compiler
def test_the_decoders_noise_is_made_by_it() -> None:
    assert compiled_noise() is not None
    assert torch.equal(gumbel(3, 4, 5, 600, CPU), compiled(3, 4, 5, 600))


def test_without_a_compiler_torch_makes_it_for_the_whole_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caches = (load_noise, compiled_noise)
    with monkeypatch.context() as patched:
        patched.setattr("shutil.which", lambda name: None)
        patched.setenv("EURYALE_CACHE", str(tmp_path))
        for cached in caches:
            cached.cache_clear()
        with caplog.at_level(logging.INFO):
            noise = gumbel(3, 4, 5, 600, CPU)
    assert torch.equal(noise, by_torch(3, 4, 5, 600))
    assert compiled_noise() is None, "a compiler that comes later would make other noise than before"
    (record,) = caplog.records
    assert "torch makes the noise of sampled tokens" in record.getMessage() and "g++" in record.getMessage()
    for cached in caches:
        cached.cache_clear()
