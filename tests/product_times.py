"""Microseconds of compiled products by instructions, rows and bits of a weight, beside torch's packed product.

    python tests/product_times.py [native|haswell|skylake-avx512|...] [OUTPUTS INPUTS MATRICES]

Several matrices in turns stand for weights that come out of memory, one for weights in a cache. Medians of ROUNDS, one
thread. Torch is held to AVX2 by MKL_ENABLE_INSTRUCTIONS=AVX2 ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2.
"""

import ctypes
import sys
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from euryale.kernels.cpu.compile import library_for
from euryale.kernels.cpu_matrix import CpuMatrix
from euryale.kernels.packed_linear import packed

ROUNDS = 25


def timed(ways: dict[str, Callable[[], object]], count: int) -> dict[str, int]:
    """Microseconds of one product; all ways in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    return {name: round(1e6 * median(found) / count) for name, found in seconds.items()}


def main() -> None:
    target = sys.argv[1] if len(sys.argv) > 1 else "native"
    num_outputs, num_inputs, count = map(int, sys.argv[2:5]) if len(sys.argv) > 4 else (3072, 576, 1)
    torch.set_num_threads(1)
    library = library_for((f"-march={target}",))
    weights = [torch.randn(num_outputs, num_inputs) for _ in range(count)]
    products = [packed(weight_OI) for weight_OI in weights]
    matrices = {bits: [CpuMatrix(weight_OI, bits) for weight_OI in weights] for bits in (32, 16, 8, 4)}
    for rows in (1, 2, 4, 8, 16, 64):
        x_MI, y_MO = torch.randn(rows, num_inputs), torch.empty(rows, num_outputs)

        def multiply(bits: int, x_MI: Tensor = x_MI, y_MO: Tensor = y_MO) -> None:
            x, y = ctypes.c_void_p(x_MI.data_ptr()), ctypes.c_void_p(y_MO.data_ptr())
            for matrix in matrices[bits]:
                library.euryale_product(ctypes.byref(matrix.c), x, len(x_MI), num_inputs, y, 1)

        ways: dict[str, Callable[[], object]] = {f"{bits} bits": lambda bits=bits: multiply(bits) for bits in matrices}
        ways["torch, float32"] = lambda x_MI=x_MI: [product(x_MI) for product in products]
        print(f"{rows:2} rows:", ", ".join(f"{name} {us} us" for name, us in timed(ways, count).items()))


if __name__ == "__main__":
    main()
