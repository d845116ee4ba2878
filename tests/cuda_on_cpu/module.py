"""A CUDA source compiled by g++, launched like the module of a card: see cuda_on_cpu.h."""

import ctypes
import subprocess
from collections.abc import Sequence
from pathlib import Path

from euryale.kernels.cuda.compile import FOLDER
from euryale.kernels.cuda.module import Argument, Size

FLAGS = ("-std=c++17", "-O2", "-fno-strict-aliasing", "-ffp-contract=off", "-U_FORTIFY_SOURCE", "-shared", "-fPIC")


def compile_on_cpu(source: Path, folder: Path) -> "OnCpu":
    """Compiles a .cu file into `folder`."""
    target = folder / f"{source.stem}.so"
    header = Path(__file__).with_name("cuda_on_cpu.h")
    command = ["g++", *FLAGS, "-I", str(FOLDER), "-x", "c++", "-include", str(header), str(source), "-o", str(target)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return OnCpu(target)


class OnCpu:
    """euryale.kernels.cuda.module.Module on fibers; `order` 0, 1 and 2: threads forwards, backwards, shuffled."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        self._library.cuda_on_cpu_error.restype = ctypes.c_char_p
        self.order = 0

    def launch(
        self, kernel: str, grid: Size, block: Size, arguments: Sequence[Argument], shared_bytes: int = 0
    ) -> None:
        """Raises RuntimeError for what the run found wrong."""
        values = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(a) for a in arguments))
        sizes = ((ctypes.c_uint * 3)(*grid), (ctypes.c_uint * 3)(*block), ctypes.c_uint(shared_bytes))
        if self._library.cuda_on_cpu_launch(kernel.encode(), *sizes, values, self.order):
            raise RuntimeError(self._library.cuda_on_cpu_error().decode())
