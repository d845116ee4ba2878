"""The PTX that decodes NF4, run on Python integers: the text that ships, without a GPU."""

import random
import re

import pytest
import torch

pytest.importorskip("triton", reason="the Triton kernels need triton (pip install -e '.[dev]')")

from euryale.kernels.nf4_weight import NF4, code_bits
from euryale.kernels.triton.nf4_decode import decode_ptx

MASK = 0xFFFFFFFF


def prmt(low: int, high: int, selector: int) -> int:
    """Four bytes of eight, by nibbles; a nibble of 8 + b copies the sign bit of byte b."""
    source = [(low | high << 32) >> 8 * i & 255 for i in range(8)]
    out = 0
    for i in range(4):
        nibble = selector >> 4 * i & 15
        byte = source[nibble & 7]
        out |= ((255 if byte >> 7 else 0) if nibble & 8 else byte) << 8 * i
    return out


def lop3(a: int, b: int, c: int, table: int) -> int:
    return sum((table >> ((a >> i & 1) * 4 + (b >> i & 1) * 2 + (c >> i & 1)) & 1) << i for i in range(32))


OPERATIONS = {
    "mov": lambda a: a,
    "and": lambda a, b: a & b,
    "shl": lambda a, b: a << b,
    "shr": lambda a, b: a >> b,
    "prmt": prmt,
    "lop3": lop3,
}


def run_ptx(text: str, word: int) -> list[int]:
    """Registers $0 to $3 after the text has run with `word` in $4."""
    registers = {"$4": word}
    for line in text.strip("{}\n").split(";"):
        if found := re.match(r"\s*(\w+)\.b32\s+(\S+), (.*)", line):
            operands = [registers[o] if o in registers else int(o, 0) for o in found[3].split(", ")]
            registers[found[2]] = OPERATIONS[found[1]](*operands) & MASK
    return [registers[f"${i}"] for i in range(4)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_eight_codes_become_their_values_in_the_order_of_the_inputs(dtype: torch.dtype) -> None:
    """Every code in every place, and 500 random words; the even input of a byte is its high nibble."""
    rng, bits, text = random.Random(0), code_bits(dtype), decode_ptx(dtype)
    words = [code << 4 * place for code in range(16) for place in range(8)] + [rng.getrandbits(32) for _ in range(500)]
    for word in words:
        inputs = [bits[word >> 8 * byte + shift & 15] for byte in range(4) for shift in (4, 0)]
        assert run_ptx(text, word) == [inputs[2 * p] | inputs[2 * p + 1] << 16 for p in range(4)]


def test_the_codebook_is_that_of_bitsandbytes() -> None:
    functional = pytest.importorskip("bitsandbytes", reason="bitsandbytes has the codebook").functional
    assert torch.equal(torch.tensor(NF4), functional.get_4bit_type("nf4", device="cpu"))
