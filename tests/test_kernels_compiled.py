"""What the compilers make of every kernel for A100 (sm_80) and H100 / H200 (sm_90): no GPU is needed to know it.

Spilled registers, a lost tensor-core instruction or a loop twice as long cost speed in silence; here they fail. Bounds
are a little above what stands in docs/gpu.md.
"""

import os
import subprocess

import pytest
from compiled import compile_cuda
from compilers import needs_nvcc
from kernel_counts import ALU, CUDA_ATTENTION, CUDA_NF4, KERNELS, Kernel, compile_for, weights_in_loop

from euryale.kernels.cuda.compile import FOLDER

CARDS = pytest.mark.parametrize("capability", [80, 90], ids=["sm_80", "sm_90"])


@pytest.fixture(autouse=True)
def compiled_anew(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Triton kept of earlier runs must not answer."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))


@CARDS
@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_a_triton_kernel_spills_nothing_and_stays_within_its_bounds(kernel: Kernel, capability: int) -> None:
    pytest.importorskip("triton", reason="triton is not installed (pip install -e '.[dev]')")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("TRITON_INTERPRET=1 is set, and the interpreter compiles nothing")
    compiled = compile_for(kernel, capability)
    assert compiled.spilled_bytes == 0
    assert compiled.registers <= kernel.registers and compiled.blocks_per_sm >= kernel.blocks, compiled[:5]
    if kernel.tensor_cores:
        # wgmma needs 64 rows on the left: the tail's 16 go through mma on Hopper too.
        wanted = "HGMMA" if capability == 90 and kernel.name != "tail_kernel" else "HMMA"
        assert compiled.count(wanted, whole=True), f"no {wanted}"
    if kernel.module == "nf4_linear":
        assert compiled.count(ALU) <= 3.1 * weights_in_loop(compiled, int(str(kernel.constants["ROWS"])))


@needs_nvcc
@CARDS
def test_the_cuda_attention_spills_nothing_and_uses_tensor_cores(capability: int) -> None:
    bounds = {"prefix_64": (104, 4), "prefix_128": (168, 3), "tail_64": (80, 6), "tail_128": (112, 4)}
    for name, compiled in compile_cuda(FOLDER / "tree_attention.cu", capability, CUDA_ATTENTION).items():
        registers, blocks = bounds[name]
        assert compiled.spilled_bytes == 0, name
        assert compiled.registers <= registers and compiled.blocks_per_sm >= blocks, (name, compiled[:5])
        assert compiled.count("HMMA", whole=True) >= 32, name


@needs_nvcc
@CARDS
def test_the_cuda_nf4_product_decodes_a_weight_in_about_one_operation(capability: int) -> None:
    for name, compiled in compile_cuda(FOLDER / "nf4_linear.cu", capability, CUDA_NF4).items():
        assert compiled.spilled_bytes == 0 and compiled.registers <= 128 and compiled.blocks_per_sm == 2, compiled[:5]
        weights = weights_in_loop(compiled, int(name.removeprefix("parts_")))
        assert weights and compiled.count(ALU) <= 1.3 * weights and sum(compiled.loop.values()) <= 4.6 * weights, name


@needs_nvcc
def test_cards_after_hopper_get_the_same_code_without_spills() -> None:
    """sm_120 (RTX Blackwell), where the compilers know it; it has no wgmma, and less shared memory."""
    if "compute_120" not in subprocess.run(["nvcc", "--list-gpu-arch"], capture_output=True, text=True).stdout:
        pytest.skip("this nvcc does not know sm_120")
    for name, compiled in compile_cuda(FOLDER / "nf4_linear.cu", 120, CUDA_NF4).items():
        assert compiled.spilled_bytes == 0 and compiled.count("HMMA"), name
    pytest.importorskip("triton", reason="triton is not installed (pip install -e '.[dev]')")
    compiled = compile_for(KERNELS[1], 120)
    assert compiled.spilled_bytes == 0 and compiled.count("HMMA") and compiled.blocks_per_sm >= 1
