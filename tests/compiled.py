"""Static costs of a kernel's compiled code, without a GPU: registers, spills, shared memory, instructions.

Triton compiles for a target that is not there, and brings ptxas and nvdisasm; nvcc brings its own. Used by
tests/test_compiled_kernels.py and for the static counts in docs/gpu.md.
"""

import io
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

from euryale.kernels.cuda.compile import FLAGS

# Of a multiprocessor: registers, bytes of shared memory, warps, blocks (CUDA C++ Programming Guide).
LIMITS = {80: (65536, 167936, 64, 32), 90: (65536, 233472, 64, 32), 120: (65536, 102400, 48, 24)}


class Compiled(NamedTuple):
    """Counts of one kernel."""

    registers: int
    spilled_bytes: int
    shared_bytes: int
    num_warps: int
    blocks_per_sm: int
    loop: Counter[
        str
    ]  # opcodes of the innermost loop with most tensor work, else of the longest; of all if there is none
    all: Counter[str]

    def count(self, pattern: str, whole: bool = False) -> int:
        """Instructions of the loop (or of the whole kernel) of which the name matches from its start."""
        return sum(n for opcode, n in (self.all if whole else self.loop).items() if re.match(pattern, opcode))


def compile_triton(
    kernel: object,
    arguments: Mapping[str, str],
    constants: Mapping[str, object],
    capability: int,
    num_warps: int = 4,
    num_stages: int = 1,
    aligned: Iterable[str] = (),
) -> Compiled:
    """arguments: type of each, for example "*bf16" or "i32"; aligned: those divisible by 16 at a launch."""
    import triton
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names  # type: ignore[attr-defined]
    source = ASTSource(
        fn=kernel,
        signature={name: arguments.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    options = {"num_warps": num_warps, "num_stages": num_stages}
    told = io.StringIO()
    with knobs.nvidia.scope(), knobs.compilation.scope(), redirect_stdout(told):
        knobs.nvidia.dump_ptxas_log = True  # it prints what its ptxas -v says, unless the kernel comes from its cache
        knobs.compilation.always_compile = True
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    return read_cubin(compiled.asm["cubin"], told.getvalue(), capability, num_warps, compiled.metadata.shared)


def compile_cuda(source: Path, capability: int, kernels: Mapping[str, tuple[int, int]]) -> dict[str, Compiled]:
    """Kernels of a .cu file, compiled by nvcc; of each its warps and its dynamic shared memory in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "kernels.cubin"
        command = ["nvcc", *FLAGS, "-O3", f"-arch=sm_{capability}", "-cubin", "-Xptxas", "-v", str(source)]
        ended = subprocess.run([*command, "-o", str(target)], capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        cubin = target.read_bytes()
    counted = {}
    for name, (num_warps, dynamic_bytes) in kernels.items():
        told = re.search(rf"entry function '{name}'.*?Used .*?\n", ended.stderr, re.DOTALL)
        assert told is not None, f"no kernel {name} in {source}"
        static = re.search(r"(\d+) bytes smem", told[0])
        shared_bytes = dynamic_bytes + (int(static[1]) if static else 0)
        counted[name] = read_cubin(cubin, told[0], capability, num_warps, shared_bytes, name)
    return counted


def read_cubin(
    cubin: bytes, told_by_ptxas: str, capability: int, num_warps: int, shared_bytes: int, name: str = r"\w+"
) -> Compiled:
    """Counts from the machine code of a kernel and from what `ptxas -v` said of it."""
    registers = re.search(r"Used (\d+) registers", told_by_ptxas)
    assert registers is not None, told_by_ptxas
    spilled = sum(map(int, re.findall(r"(\d+) bytes spill", told_by_ptxas)))
    opcodes, loop = _instructions(cubin, name)
    blocks = _blocks_per_sm(capability, int(registers[1]), shared_bytes, num_warps)
    return Compiled(int(registers[1]), spilled, shared_bytes, num_warps, blocks, Counter(loop), Counter(opcodes))


def _blocks_per_sm(capability: int, registers: int, shared_bytes: int, num_warps: int) -> int:
    """Registers are dealt to a warp 256 at a time; 1 KB of shared memory a block is the system's."""
    most_registers, most_shared, most_warps, most_blocks = LIMITS[capability]
    of_a_warp = -(-registers * 32 // 256) * 256
    by_registers, by_shared = most_registers // of_a_warp // num_warps, most_shared // (shared_bytes + 1024)
    return min(by_registers, by_shared, most_warps // num_warps, most_blocks)


def _instructions(cubin: bytes, name: str) -> tuple[list[str], list[str]]:
    """Opcodes of the kernel in order, and those of its main loop."""
    import triton

    disassembler = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([disassembler, "-c", file.name], capture_output=True, text=True, check=True).stdout
    found_code = re.search(rf"\.text\.{name}:\n(.*?)(?:\n//-----|\Z)", text, re.DOTALL)
    assert found_code is not None, text[:2000]
    opcodes: list[str] = []
    labels: dict[str, int] = {}
    loops: list[tuple[int, int]] = []
    for line in found_code[1].splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(opcodes)
        elif found := re.search(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)(.*?);", line):
            target = re.search(r"\.L_x_\d+", found[2]) if found[1].startswith("BRA") else None
            if target is not None and target[0] in labels and labels[target[0]] < len(opcodes):
                loops.append((labels[target[0]], len(opcodes) + 1))
            opcodes.append(found[1])
    inner = [a for a in loops if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    bodies = [opcodes[begin:end] for begin, end in inner] or [opcodes]
    return opcodes, max(bodies, key=lambda body: (sum("MMA" in opcode for opcode in body), len(body)))
