"""Integer helpers that several Triton kernels share: set bits, and sort keys of which the order breaks ties."""

import triton
import triton.language as tl

LEAST_KEY = tl.constexpr(-9223372036854775808)


@triton.jit
def popcount(word):
    """Set bits of an int32: sums of bits, pairs and nibbles."""
    word = word - ((word >> 1) & 0x55555555)
    word = (word & 0x33333333) + ((word >> 2) & 0x33333333)
    word = (word + (word >> 4)) & 0x0F0F0F0F
    return ((word * 0x01010101) >> 24) & 0xFF


@triton.jit
def sort_key(score, index):
    """float32 scores and their indices as int64 keys: greater scores first, then lower indices.

    -0 equals 0, and NaN of either sign is greater than infinity, as in torch's argmax.
    """
    bits = tl.where(score == 0.0, 0.0, score).to(tl.int32, bitcast=True)
    bits = tl.where(score != score, 0x7FC00000, bits)
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return ordered.to(tl.int64) * 4294967296 + (2147483647 - index).to(tl.int64)


@triton.jit
def key_index(key):
    """The index inside a key."""
    return 2147483647 - (key & 2147483647)


@triton.jit
def key_score(key):
    """The score inside a key."""
    ordered = (key >> 32).to(tl.int32)
    return tl.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered).to(tl.float32, bitcast=True)
