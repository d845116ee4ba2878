"""Every kernel as a step of Llama-3-8B launches it, and what compilers make of it: python tests/kernel_counts.py

Prints the table of docs/gpu.md. Needs triton and nvcc, and no GPU.
"""

import importlib
import re
from typing import NamedTuple

from compiled import Compiled, compile_cuda, compile_triton

from euryale.kernels.cuda.compile import FOLDER
from euryale.kernels.tree_split import REACH, TILE

# The arithmetic pipe of 64 lanes a clock, which decoding codes waits for; IMAD and FFMA go through another.
ALU = r"LOP3|SHF|IADD3|LEA|ISETP|SEL|FSEL|FSETP|FMNMX|PRMT|BFE|VIADD|IMNMX|I2F|I2I|PLOP3|F2FP|SGXT|MOV"


class Kernel(NamedTuple):
    """A Triton kernel, and the bounds on what comes of it."""

    module: str
    name: str
    arguments: str  # name:type, of the arguments that are no strides
    constants: dict[str, object]
    registers: int  # at most
    blocks: int  # on a multiprocessor, at least
    num_warps: int = 4
    num_stages: int = 1
    tensor_cores: bool = False

    def __str__(self) -> str:
        width = {"D": "head ", "ROWS": "rows "}
        sizes = [f"{word}{self.constants[name]}" for name, word in width.items() if name in self.constants]
        return f"{self.module}.{self.name.removesuffix('_kernel')} {' '.join(sizes[:1])}".rstrip()


_ATTENTION = (
    "q_ptr:*bf16 k_ptr:*bf16 v_ptr:*bf16 lengths_ptr:*i32 ancestors_ptr:*i32 part_ptr:*fp32 stats_ptr:*fp32 "
    "scale_log2:fp32 SPLITS:i32"
)
_TREE = dict(N=16, GROUP=4, G=8, WINDOW=0, SPLIT=64, REACH=REACH, TILE=TILE)
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
_NF4 = (
    "x_ptr:*bf16 words_ptr:*i32 codebook_ptr:*fp32 absmax_ptr:*u8 nested_absmax_ptr:*fp32 nested_codebook_ptr:*fp32 "
    "offset_ptr:*fp32 part_ptr:*fp32 OUTPUTS:i32 M:i32"
)
_PRODUCT = dict(INPUTS=4096, SPLITS=8, BLOCK_O=128, NESTED=True, PRMT=True, T="bfloat16")
KERNELS = [
    Kernel("tree_attention", "prefix_kernel", _ATTENTION, _TREE | dict(D=64, BLOCK_M=64), 128, 4, 4, 2, True),
    Kernel("tree_attention", "prefix_kernel", _ATTENTION, _TREE | dict(D=128, BLOCK_M=64), 220, 2, 4, 3, True),
    Kernel("tree_attention", "tail_kernel", f"{_ATTENTION} out_ptr:*bf16", _TREE | dict(D=128, ROWS=16),
           128, 4, 4, 1, True),
    Kernel("nf4_linear", "parts_kernel", _NF4, _PRODUCT | dict(ROWS=16), 128, 4, 4, 3, True),
    Kernel("nf4_linear", "parts_kernel", _NF4, _PRODUCT | dict(ROWS=32), 168, 3, 4, 2, True),
    Kernel("accept_walk", "accept_walk_kernel", _WALK, dict(N=64, BLOCK_N=64, P=6, T=64, ENDS=4, REAL=False),
           64, 16, 1),
    Kernel("kv_commit", "kv_commit_kernel", "kv_ptr:*bf16 paths_ptr:*i32 starts_ptr:*i32 counts_ptr:*i32",
           dict(P=6, BLOCK_P=8, D=128, BLOCK_D=128), 40, 8),
    Kernel("kv_write", "kv_write_kernel", _WRITE, dict(H=32, G=8, E=64, BLOCK_E=64, NORM=True), 64, 16, 1),
    Kernel("top_k", "tiles_kernel", "scores_ptr:*bf16 keys_ptr:*i64 V:i32", dict(K=10, TILE=2048), 64, 4, 8),
    Kernel("top_k", "join_kernel", "keys_ptr:*i64 values_ptr:*fp32 ids_ptr:*i64",
           dict(NUM=630, BLOCK=1024, K=10), 64, 8),
    Kernel("draw", "tiles_kernel", _DRAW, dict(TILE=2048), 80, 3, 8),
    Kernel("draw", "join_kernel", "keys_ptr:*i64 tokens_ptr:*i64", dict(NUM=63, BLOCK=64), 40, 16, 1),
    Kernel("rms_norm", "rms_norm_kernel", _NORM, dict(C=4096, BLOCK=4096, ADD=True), 64, 4, 8),
    Kernel("swiglu", "swiglu_kernel", "gate_up_ptr:*bf16 y_ptr:*bf16 F:i32", dict(BLOCK=1024), 40, 8),
]  # fmt: skip
CUDA_ATTENTION = {"prefix_64": (4, 0), "prefix_128": (4, 0), "tail_64": (4, 0), "tail_128": (4, 0)}  # warps, bytes
CUDA_NF4 = {"parts_8": (8, 65536), "parts_16": (8, 65536), "parts_32": (8, 65536)}
STRIDES_OF_TABLES = ("stride_ab", "stride_ar", "stride_pr", "stride_dr")  # not divisible by 16


def compile_for(kernel: Kernel, capability: int) -> Compiled:
    """Imports triton only now."""
    language = importlib.import_module("triton.language")
    function = getattr(importlib.import_module(f"euryale.kernels.triton.{kernel.module}"), kernel.name)
    arguments = dict(pair.split(":") for pair in kernel.arguments.split())
    strides = {name: "i32" for name in function.arg_names if name.startswith("stride_")}
    aligned = [name for name, kind in arguments.items() if kind[0] == "*"]
    aligned += [name for name in strides if name not in STRIDES_OF_TABLES]
    constants = {n: getattr(language, v) if isinstance(v, str) else v for n, v in kernel.constants.items()}
    return compile_triton(
        function, arguments | strides, constants, capability, kernel.num_warps, kernel.num_stages, aligned
    )


def weights_in_loop(compiled: Compiled, rows: int) -> int:
    """4-bit weights that a thread decodes in one turn of the loop, told by the tensor-core instructions in it.

    wgmma m64nMk16 takes 64 x 16 of 128 threads, mma m16n8k16 16 x 16 of 32, once for every 8 rows of x.
    """
    return compiled.count("HGMMA") * 8 or compiled.count("HMMA") * 8 // (rows // 8)


def main() -> None:
    row = "| {:32} | {:5} | {:9} | {:6} | {:9} | {:12} | {:12} |"
    print(row.format("kernel", "card", "registers", "shared", "blocks/SM", "tensor cores", "per weight"))
    print(row.format(*["---"] * 7))
    for capability in (80, 90):
        found = [(str(kernel), compile_for(kernel, capability)) for kernel in KERNELS]
        for source, kernels in (("tree_attention", CUDA_ATTENTION), ("nf4_linear", CUDA_NF4)):
            compiled = compile_cuda(FOLDER / f"{source}.cu", capability, kernels)
            found += [(f"{source}.cu {name}", counts) for name, counts in compiled.items()]
        for name, counts in found:
            assert counts.spilled_bytes == 0, name
            tensor = "wgmma" if counts.count("HGMMA", whole=True) else "mma" if counts.count("HMMA", whole=True) else ""
            rows = re.search(r"nf4_linear.*[ _](\d+)$", name)
            weights = weights_in_loop(counts, int(rows[1])) if rows else 0
            each = f"{counts.count(ALU) / weights:.2f} / {sum(counts.loop.values()) / weights:.2f}" if weights else ""
            numbers = (counts.registers, counts.shared_bytes, counts.blocks_per_sm)
            print(row.format(name, f"sm_{capability}", *numbers, tensor, each), flush=True)


if __name__ == "__main__":
    main()
