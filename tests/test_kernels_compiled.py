"""What the compilers make of every kernel for A100 (sm_80) and H100 / H200 (sm_90): no GPU is needed to know it.

Spilled registers, a lost tensor-core instruction or a loop twice as long cost speed in silence; here they fail. Bounds
are a little above what stands in docs/gpu.md, which says what the counts mean.
"""

import os
import shutil
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from compiled import Compiled, compile_cuda, compile_triton

from euryale.kernels.cuda.compile import FOLDER
from euryale.kernels.tree_split import REACH, TILE

HAS_NVCC = shutil.which("nvcc") is not None
# The arithmetic pipe of 64 lanes a clock, which decoding codes waits for; IMAD and FFMA go through another.
ALU = r"LOP3|SHF|IADD3|LEA|ISETP|SEL|FSEL|FSETP|FMNMX|PRMT|BFE|VIADD|IMNMX|I2F|I2I|PLOP3|F2FP|SGXT|MOV"

CARDS = pytest.mark.parametrize("capability", [80, 90], ids=["sm_80", "sm_90"])


class Kernel(NamedTuple):
    """A Triton kernel as it is launched for Llama-3-8B, and the bounds on what comes of it."""

    module: str
    name: str
    arguments: str  # name:type, of the arguments that are no strides
    constants: dict[str, object]
    registers: int
    blocks: int  # on a multiprocessor, at least
    num_warps: int = 4
    num_stages: int = 1
    tensor_cores: bool = False


_ATTENTION = (
    "q_ptr:*bf16 k_ptr:*bf16 v_ptr:*bf16 lengths_ptr:*i32 ancestors_ptr:*i32 part_ptr:*fp32 stats_ptr:*fp32 "
    "scale_log2:fp32"
)
_TREE = dict(N=16, GROUP=4, G=8, WINDOW=0, SPLITS=16, SPLIT=64, REACH=REACH, TILE=TILE)
_WALK = (
    "tokens_ptr:*i64 targets_ptr:*i64 parents_ptr:*i32 ancestors_ptr:*i32 is_real_ptr:*i64 lengths_ptr:*i32 "
    "root_ptr:*i64 last_ptr:*i64 ring_ptr:*i64 written_ptr:*i32 limit_ptr:*i32 ends_ptr:*i64 is_done_ptr:*i8 "
    "paths_ptr:*i32 starts_ptr:*i32 counts_ptr:*i32"
)
_WRITE = (
    "qkv_ptr:*bf16 cos_ptr:*fp32 sin_ptr:*fp32 lengths_ptr:*i32 depths_ptr:*i32 out_ptr:*bf16 k_ptr:*bf16 v_ptr:*bf16 "
    "q_norm_ptr:*bf16 k_norm_ptr:*bf16 eps:fp32"
)
_DRAW = "scores_ptr:*bf16 temperature_ptr:*fp32 seeds_ptr:*i64 positions_ptr:*i32 keys_ptr:*i64 V:i32"
_NORM = "x_ptr:*bf16 residual_ptr:*bf16 weight_ptr:*bf16 y_ptr:*bf16 total_ptr:*bf16 eps:fp32"
KERNELS = [
    Kernel("tree_attention", "prefix_kernel", _ATTENTION, _TREE | dict(D=64, BLOCK_M=64), 128, 4, 4, 2, True),
    Kernel("tree_attention", "prefix_kernel", _ATTENTION, _TREE | dict(D=128, BLOCK_M=64), 216, 2, 4, 3, True),
    Kernel("tree_attention", "tail_kernel", f"{_ATTENTION} out_ptr:*bf16", _TREE | dict(D=128, ROWS=16),
           128, 4, 4, 1, True),
    Kernel("accept_walk", "accept_walk_kernel", _WALK, dict(N=64, BLOCK_N=64, P=6, T=64, ENDS=4, REAL=False),
           64, 16, 1),
    Kernel("kv_commit", "kv_commit_kernel", "kv_ptr:*bf16 paths_ptr:*i32 starts_ptr:*i32 counts_ptr:*i32",
           dict(P=6, BLOCK_P=8, D=128, BLOCK_D=128), 40, 8),
    Kernel("kv_write", "kv_write_kernel", _WRITE, dict(N=16, H=32, G=8, E=64, BLOCK_E=64, NORM=True), 64, 16, 1),
    Kernel("top_k", "tiles_kernel", "scores_ptr:*bf16 keys_ptr:*i64 V:i32", dict(K=10, TILE=2048), 64, 4, 8),
    Kernel("top_k", "join_kernel", "keys_ptr:*i64 values_ptr:*fp32 ids_ptr:*i64",
           dict(NUM=630, BLOCK=1024, K=10), 64, 8),
    Kernel("draw", "tiles_kernel", _DRAW, dict(TILE=2048), 80, 3, 8),
    Kernel("draw", "join_kernel", "keys_ptr:*i64 tokens_ptr:*i64", dict(NUM=63, BLOCK=64), 40, 16, 1),
    Kernel("rms_norm", "rms_norm_kernel", _NORM, dict(C=4096, BLOCK=4096, ADD=True), 64, 4, 8),
    Kernel("swiglu", "swiglu_kernel", "gate_up_ptr:*bf16 y_ptr:*bf16 F:i32", dict(BLOCK=1024), 40, 8),
]  # fmt: skip


@pytest.fixture(autouse=True)
def compiled_anew(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What Triton kept of earlier runs must not answer."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("TRITON_INTERPRET=1 is set, and the interpreter compiles nothing")
    yield


def compile_for(kernel: Kernel, capability: int) -> Compiled:
    triton_module = pytest.importorskip(
        f"euryale.kernels.triton.{kernel.module}", reason="triton is not installed", exc_type=ImportError
    )
    function = getattr(triton_module, kernel.name)
    arguments = dict(pair.split(":") for pair in kernel.arguments.split())
    strides = {name: "i32" for name in function.arg_names if name.startswith("stride_")}
    aligned = [name for name, kind in arguments.items() if kind[0] == "*"]
    aligned += [name for name in strides if name not in ("stride_ab", "stride_ar", "stride_pr", "stride_dr")]
    return compile_triton(
        function, arguments | strides, kernel.constants, capability, kernel.num_warps, kernel.num_stages, aligned
    )


@CARDS
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: f"{k.module}.{k.name}{k.constants.get('D', '')}")
def test_a_triton_kernel_spills_nothing_and_stays_within_its_bounds(kernel: Kernel, capability: int) -> None:
    compiled = compile_for(kernel, capability)
    assert compiled.spilled_bytes == 0
    assert compiled.registers <= kernel.registers and compiled.blocks_per_sm >= kernel.blocks, compiled[:5]
    if kernel.tensor_cores:
        # wgmma needs 64 rows: the prefix has them, the tail's 16 go through mma.sync on Hopper too.
        wanted = "HGMMA" if capability == 90 and kernel.name == "prefix_kernel" else "HMMA"
        assert compiled.count(wanted, whole=True), f"no {wanted}"


@CARDS
@pytest.mark.parametrize("rows", [16, 32])
def test_the_triton_nf4_product_decodes_a_weight_in_three_operations(rows: int, capability: int) -> None:
    tl = pytest.importorskip("triton.language", reason="triton is not installed")
    arguments = (
        "x_ptr:*bf16 words_ptr:*i32 codebook_ptr:*fp32 absmax_ptr:*u8 nested_absmax_ptr:*fp32 "
        "nested_codebook_ptr:*fp32 offset_ptr:*fp32 part_ptr:*fp32 OUTPUTS:i32 M:i32"
    )
    constants = dict(INPUTS=4096, ROWS=rows, SPLITS=8, BLOCK_O=128, NESTED=True, PRMT=True, T=tl.bfloat16)
    kernel = Kernel("nf4_linear", "parts_kernel", arguments, constants, 168, 3, 4, 3 if rows == 16 else 2, True)
    compiled = compile_for(kernel, capability)
    assert compiled.spilled_bytes == 0 and compiled.registers <= 168 and compiled.blocks_per_sm >= 3, compiled[:5]
    # A thread's weights in the loop: wgmma m64nMk16 has 64 x 16 for 128 threads, mma m16n8k16 16 x 16 for 32.
    wgmma, mma = compiled.count("HGMMA"), compiled.count("HMMA")
    weights = wgmma * 8 if wgmma else mma * 8 // (rows // 8)
    assert (wgmma if capability == 90 else mma) and compiled.count(ALU) <= 3.1 * weights


@pytest.mark.skipif(not HAS_NVCC, reason="nvcc is not installed")
@CARDS
def test_the_cuda_attention_spills_nothing_and_uses_tensor_cores(capability: int) -> None:
    bounds = {"prefix_64": (104, 4), "prefix_128": (168, 3), "tail_64": (80, 6), "tail_128": (112, 4)}
    found = compile_cuda(FOLDER / "tree_attention.cu", capability, dict.fromkeys(bounds, (4, 0)))
    for name, (registers, blocks) in bounds.items():
        compiled = found[name]
        assert compiled.spilled_bytes == 0, name
        assert compiled.registers <= registers and compiled.blocks_per_sm >= blocks, (name, compiled[:5])
        assert compiled.count("HMMA", whole=True) >= 32, name


@pytest.mark.skipif(not HAS_NVCC, reason="nvcc is not installed")
@CARDS
def test_the_cuda_nf4_product_decodes_a_weight_in_one_operation(capability: int) -> None:
    rows_of = {"parts_8": 8, "parts_16": 16, "parts_32": 32}
    found = compile_cuda(FOLDER / "nf4_linear.cu", capability, dict.fromkeys(rows_of, (8, 65536)))
    for name, rows in rows_of.items():
        compiled = found[name]
        assert compiled.spilled_bytes == 0 and compiled.registers <= 128 and compiled.blocks_per_sm == 2, compiled[:5]
        weights = compiled.count("HMMA") * 8 // (rows // 8)
        assert weights and compiled.count(ALU) <= 1.3 * weights and sum(compiled.loop.values()) <= 4.6 * weights, name
