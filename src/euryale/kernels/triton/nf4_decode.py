"""NF4 codes to 16-bit floats with PRMT, the byte permute instruction: eight codes of a 32-bit word in one piece of PTX.

PRMT picks four bytes out of eight by four nibbles of a selector, so it looks up four codes of a table of eight bytes at
once. Sixteen codes of two bytes are four such tables: the low and the high bytes of codes 0 to 7 and of 8 to 15. Bit
3 of a code chooses between halves, by a mask that PRMT makes too (a selector nibble of 8 + b copies the sign of byte
b). 22 instructions decode 8 codes. A tree of selects takes 16 or more for each code, a table in memory a load for
each.

inline_asm has no interpreter: tests run the very text on Python integers (tests/test_nf4_decode.py).
Order: bitsandbytes has the even input of a byte in its high nibble, so register p of the four outputs holds inputs
2 p (low half) and 2 p + 1 (high half) of the word's eight.
"""

import torch
import triton
import triton.language as tl

from euryale.kernels.nf4_weight import code_bits


def decode_ptx(dtype: torch.dtype) -> str:
    """$4: eight codes; $0 to $3: their values, two to a register."""
    bits = code_bits(dtype)
    tables = {
        f"{'lh'[byte]}{quarter}": int.from_bytes(
            bytes(b >> 8 * byte & 255 for b in bits[4 * quarter : 4 * quarter + 4]), "little"
        )
        for byte in (0, 1)
        for quarter in range(4)
    }
    lines = [".reg .b32 l<4>, h<4>, s, t, k, a, b, c, d"]
    lines += [f"mov.b32 {name}, 0x{value:08x}" for name, value in tables.items()]
    # s: the low three bits of every code, selectors of PRMT; t: bit 3 of the low nibbles moved to the top of each byte.
    lines += ["and.b32 s, $4, 0x77777777", "shl.b32 t, $4, 4"]
    for half in (0, 1):  # codes 0 to 3, then 4 to 7
        if half:
            lines.append("shr.b32 s, s, 16")
        # Sign bytes of: low nibble (in t), high nibble (in the word itself), for two bytes.
        lines.append(f"prmt.b32 k, $4, t, 0x{0xBFAE if half else 0x9D8C:04x}")
        for name, result in (("l", "c"), ("h", "d")):
            lines.append(f"prmt.b32 a, {name}0, {name}1, s")
            lines.append(f"prmt.b32 b, {name}2, {name}3, s")
            lines.append(f"lop3.b32 {result}, k, b, a, 0xca")  # k ? b : a
        # c, d: low and high bytes of codes low 0, high 0, low 1, high 1; the high nibble is the even input.
        lines.append(f"prmt.b32 ${2 * half}, c, d, 0x4051")
        lines.append(f"prmt.b32 ${2 * half + 1}, c, d, 0x6273")
    return "{\n" + "".join(f"{line};\n" for line in lines) + "}"


BF16_PTX = tl.constexpr(decode_ptx(torch.bfloat16))
FP16_PTX = tl.constexpr(decode_ptx(torch.float16))


@triton.jit
def decode(words, T: tl.constexpr):
    """int32 words of eight codes -> four int32 tensors of two values of T each."""
    return tl.inline_asm_elementwise(
        asm=BF16_PTX if tl.bfloat16 == T else FP16_PTX, constraints="=r,=r,=r,=r,r", args=[words],
        dtype=(tl.int32, tl.int32, tl.int32, tl.int32), is_pure=True, pack=1,
    )  # fmt: skip
