"""Compiled products are what their specification says, with all instructions and in any company of rows."""

import ctypes
import platform

import pytest
import torch
from compiled_models import OWN
from compilers import needs_compiler, skip_without_compiler
from torch import Tensor
from torch.nn.functional import pad

from euryale.kernels.cpu.compile import library_for
from euryale.kernels.cpu_matrix import CpuLinear, CpuMatrix
from euryale.kernels.few_bits import BLOCK, few_bits_product, to_blocks

IS_X86 = platform.machine() in ("x86_64", "AMD64")
TARGETS = {"its own": OWN, "the plainest": ("-O1", "-march=x86-64") if IS_X86 else ("-O1",)}
if IS_X86 and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):
    TARGETS["AVX2"] = ("-O1", "-march=haswell")
if IS_X86 and torch.backends.cpu.get_cpu_capability() == "AVX512":
    TARGETS["AVX512 alone"] = ("-O1", "-march=skylake-avx512")  # products of 8 bits without VNNI


def numbers(rows: int, inputs: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, inputs, generator=torch.Generator().manual_seed(seed))


def product_on(target: str, x_MI: Tensor, weight: CpuMatrix, threads: int = 1) -> Tensor:
    skip_without_compiler()
    library = library_for(TARGETS[target])
    y_MO = torch.empty(len(x_MI), weight.num_outputs)
    library.euryale_product(
        ctypes.byref(weight.c),
        ctypes.c_void_p(x_MI.data_ptr()),
        len(x_MI),
        x_MI.shape[1],
        ctypes.c_void_p(y_MO.data_ptr()),
        threads,
    )
    return y_MO


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("outputs", "inputs"), [(16, 32), (5, 64), (50, 96), (33, 576)])
def test_a_product_is_what_the_specification_says(target: str, bits: int, outputs: int, inputs: int) -> None:
    weight_OI, x_MI, bias_O = numbers(outputs, inputs), numbers(11, inputs, 1), numbers(1, outputs, 2)[0]
    expected = few_bits_product(x_MI, to_blocks(weight_OI, bits)) + bias_O
    found = product_on(target, x_MI, CpuMatrix(weight_OI, bits, bias_O))
    # The whole sums are exact; what remains is float32 over at most 18 blocks, and a number that lies between two of
    # the 8 bits can fall on either side: 1/127 of a block's largest number times a weight, in one of I terms.
    torch.testing.assert_close(found.double(), expected, rtol=0.0, atol=0.03 * (inputs / BLOCK) ** 0.5)
    assert (found - expected).abs().median() < 1e-4 * (inputs / BLOCK)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("outputs", "inputs"), [(16, 32), (5, 64), (33, 576)])
def test_a_product_in_16_bits_is_that_of_numbers_in_bfloat16(target: str, outputs: int, inputs: int) -> None:
    weight_OI, x_MI, bias_O = numbers(outputs, inputs), numbers(11, inputs, 1), numbers(1, outputs, 2)[0]
    expected = x_MI.bfloat16().double() @ weight_OI.bfloat16().double().T + bias_O
    found = product_on(target, x_MI, CpuMatrix(weight_OI, 16, bias_O))
    torch.testing.assert_close(found.double(), expected, rtol=0.0, atol=1e-6 * inputs)  # sums in float32


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("outputs", "inputs"), [(16, 32), (5, 64), (33, 576), (7, 45)])
def test_a_product_in_32_bits_is_that_of_float32(target: str, outputs: int, inputs: int) -> None:
    weight_OI, x_MI, bias_O = numbers(outputs, inputs), numbers(29, inputs, 1), numbers(1, outputs, 2)[0]
    expected = x_MI.double() @ weight_OI.double().T + bias_O
    found = product_on(target, x_MI, CpuMatrix(weight_OI, 32, bias_O))
    torch.testing.assert_close(found.double(), expected, rtol=0.0, atol=1e-6 * inputs)


@needs_compiler
@pytest.mark.parametrize("bits", [4, 8, 16])
def test_inputs_that_are_no_whole_block_are_filled_up(bits: int) -> None:
    weight_OI, x_MI = numbers(20, 45), numbers(9, 45, 1)
    whole_OI, whole_MI = pad(weight_OI, (0, 19)), pad(x_MI, (0, 19))
    assert torch.equal(CpuLinear(weight_OI, bits)(x_MI), CpuLinear(whole_OI, bits)(whole_MI))


@pytest.mark.parametrize("bits", [4, 8, 16, 32])
def test_a_row_has_the_same_bits_in_any_company_and_with_any_number_of_threads(bits: int) -> None:
    weight, x_MI = CpuMatrix(numbers(70, 160), bits), numbers(21, 160, 1)
    alone = torch.cat([product_on("its own", x_MI[m : m + 1].contiguous(), weight) for m in range(len(x_MI))])
    for count in (2, 3, 5, 8, 9, 21):
        for threads in (1, 2):
            found = product_on("its own", x_MI[-count:].contiguous(), weight, threads)
            assert torch.equal(found, alone[-count:])


@pytest.mark.parametrize("target", [target for target in TARGETS if target != "the plainest"])
def test_whole_sums_do_not_depend_on_the_instructions(target: str) -> None:
    """Numbers of which nothing is rounded: any difference would be a wrong sum, not another order."""
    generator = torch.Generator().manual_seed(3)
    codes_OI = torch.randint(0, 256, (32, 64), generator=generator).float()
    codes_OI[:, ::32], codes_OI[:, 1::32] = 0, 255  # so that the scale is 1 and the least value 0
    x_MI = torch.randint(-127, 128, (9, 64), generator=generator).float()
    x_MI[:, ::32] = 127
    weight = CpuMatrix(codes_OI, 8)
    assert torch.equal(product_on(target, x_MI, weight), x_MI @ codes_OI.T)
    assert torch.equal(product_on(target, x_MI, weight), product_on("the plainest", x_MI, weight))


def test_the_largest_codes_and_numbers_do_not_overflow() -> None:
    for bits, top in ((4, 15.0), (8, 255.0)):
        codes_OI = torch.full((16, 32), top)
        codes_OI[:, 0] = 0
        x_MI = torch.full((1, 32), -127.0)
        for target in TARGETS:
            assert torch.equal(product_on(target, x_MI, CpuMatrix(codes_OI, bits)), x_MI @ codes_OI.T)


@pytest.mark.parametrize("kind", ["Q4_1", "Q4_0", "Q8_0"])
def test_weights_that_are_in_few_bits_already_lose_nothing(kind: str) -> None:
    """Of Q4_1 both ends are in use, of Q4_0 the lower one, of Q8_0 either: so llama.cpp chooses their scales."""
    generator = torch.Generator().manual_seed(5)
    bits, top = (8, 254) if kind == "Q8_0" else (4, 15)
    codes_OBI = torch.randint(0, top + 1, (40, 3, BLOCK), generator=generator)
    codes_OBI[..., 0], codes_OBI[..., 1] = 0, 13 if kind == "Q4_0" else top
    scales = ((torch.rand(40, 3, 1, generator=generator) + 0.1) / top).half().float()
    middles: dict[str, float | Tensor] = {
        "Q4_0": 8.0,
        "Q8_0": 127.0,
        "Q4_1": 5 * torch.randn(40, 3, 1, generator=generator),
    }
    weight_OI = ((codes_OBI - middles[kind]) * scales).flatten(1)
    for stored_OI in (weight_OI, weight_OI.bfloat16()):
        blocks = to_blocks(stored_OI, bits)
        assert torch.equal(blocks.codes_OBI, codes_OBI.to(torch.uint8)) or bits == 8
        lost = (blocks.matrix() - weight_OI).norm() / weight_OI.norm()
        # float16 of scale and least value; of Q8_0 the steps are finer than what bfloat16 holds of them.
        assert lost < (1e-3 if stored_OI.dtype == torch.float32 else 4e-3)


def test_rounding_is_at_most_half_a_step() -> None:
    weight_OI = numbers(48, 128)
    for bits in (4, 8):
        blocks = to_blocks(weight_OI, bits)
        step_OI = blocks.scales_OB.float().abs().repeat_interleave(BLOCK, 1)
        room = 0.51 if bits == 8 else 1.01  # around zero, what lies at the short end may be cut by a whole step
        assert ((blocks.matrix() - weight_OI).abs() <= room * step_OI + 1e-3).all()


@needs_compiler
def test_blocks_of_one_number_and_of_zeros_are_kept() -> None:
    weight_OI = torch.zeros(16, 64)
    weight_OI[3:, 32:] = 0.5
    for bits in (4, 8):
        assert torch.equal(to_blocks(weight_OI, bits).matrix(), weight_OI)
        found = CpuLinear(weight_OI, bits)(torch.ones(2, 64))
        assert torch.equal(found, torch.ones(2, 64) @ weight_OI.T)


@needs_compiler
@pytest.mark.parametrize("broken", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_stays_so(broken: float) -> None:
    """A base that breaks must be seen to: a NaN that 8 bits hide would be text that looks right."""
    x_MI = numbers(3, 64)
    x_MI[1, 40] = broken
    found = CpuLinear(numbers(16, 64), 4)(x_MI)
    assert not found[1].isfinite().any()
    assert found[[0, 2]].isfinite().all()


@needs_compiler
def test_a_linear_keeps_shape_and_dtype() -> None:
    linear = CpuLinear(numbers(48, 64), 8)
    x = numbers(6, 64).view(2, 3, 64).bfloat16()
    assert linear(x).shape == (2, 3, 48) and linear(x).dtype == torch.bfloat16
    assert torch.equal(linear.onto(torch.ones(2, 3, 48), x.float()), 1 + linear(x.float()))
