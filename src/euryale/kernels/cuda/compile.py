"""CUDA sources of this folder to machine code, by nvcc or, where there is none, by the NVRTC that torch brings.

What was compiled is kept under a name made of the sources, the compiler and the card, so a file there is either right
or of no use.
"""

import ctypes
import hashlib
import logging
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from euryale.errors import UserError
from euryale.kernels.compiled import cache_folder, keep

log = logging.getLogger(__name__)

FOLDER = Path(__file__).parent
OLDEST_NVCC = (11, 8)  # the first that knows sm_90
FLAGS = ("-std=c++17",)


class Compiler(NamedTuple):
    """One way from a source to machine code for a card of this compute capability (80, 90, ...)."""

    name: str
    compile: Callable[[Path, int], bytes]


def find_compiler() -> Compiler | str:
    """nvcc, else NVRTC; where neither is fit, why not."""
    nvcc = _nvcc()
    if isinstance(nvcc, Compiler):
        return nvcc
    nvrtc = _nvrtc()
    return nvrtc if isinstance(nvrtc, Compiler) else f"{nvcc}, and {nvrtc}"


def cubin(source: str, capability: int, compiler: Compiler | None = None, folder: Path | None = None) -> bytes:
    """The machine code of FOLDER/source.cu for a card, from the cache or compiled now.

    Raises UserError when there is no compiler, or when it refuses.
    """
    found = compiler or find_compiler()
    if isinstance(found, str):
        raise UserError(
            f"kernels: backend=cuda needs a compiler; {found}. Install nvcc, or use backend=triton or torch."
        )
    path = FOLDER / f"{source}.cu"
    digest = hashlib.sha256()
    for part in (path.read_bytes(), (FOLDER / "common.cuh").read_bytes(), found.name.encode(), *map(str.encode, FLAGS)):
        digest.update(hashlib.sha256(part).digest())
    kept = (folder or cache_folder()) / f"{source}-sm_{capability}-{digest.hexdigest()[:16]}.cubin"
    if kept.is_file():
        return kept.read_bytes()
    log.info("kernels: compiling %s.cu for sm_%d with %s", source, capability, found.name)
    code = found.compile(path, capability)
    keep(kept, code)
    return code


def _nvcc() -> Compiler | str:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    path = shutil.which("nvcc", path=f"{home}/bin") if home else shutil.which("nvcc")
    if path is None:
        return f"nvcc was not found {f'in {home}/bin' if home else 'on PATH'}"
    told = subprocess.run([path, "--version"], capture_output=True, text=True).stdout
    version = re.search(r"release (\d+)\.(\d+)", told)
    if version is None or (int(version[1]), int(version[2])) < OLDEST_NVCC:
        oldest = ".".join(map(str, OLDEST_NVCC))
        return f"{path} is of version {version[0][8:] if version else 'unknown'}, and {oldest} or newer is needed"

    def compile_with_nvcc(source: Path, capability: int) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "kernel.cubin"
            command = [path, *FLAGS, "-O3", f"-arch=sm_{capability}", "-cubin", str(source), "-o", str(target)]
            ended = subprocess.run(command, capture_output=True, text=True)
            if ended.returncode:
                raise UserError(f"kernels: {path} refuses {source.name}:\n{ended.stderr}\nUse backend=triton or torch.")
            return target.read_bytes()

    return Compiler(f"nvcc {version[1]}.{version[2]}", compile_with_nvcc)


def _nvrtc() -> Compiler | str:
    if torch.version.cuda is None:
        return "this torch has no CUDA and hence no NVRTC"
    return nvrtc_compiler(f"libnvrtc.so.{torch.version.cuda.split('.')[0]}")


def _load_builtins() -> None:
    """Loads the library that NVRTC opens by its bare name, from the folder that NVRTC itself came from."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "/libnvrtc.so" in line:
            for path in Path(line[line.index("/") :]).parent.glob("libnvrtc-builtins.so.*"):
                ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
            return


def nvrtc_compiler(library: str) -> Compiler | str:
    """The compiler in this shared library."""
    try:
        nvrtc = ctypes.CDLL(library)
        _load_builtins()
    except OSError as error:
        return f"NVRTC could not be loaded ({error})"
    major, minor = ctypes.c_int(), ctypes.c_int()
    nvrtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))

    def compile_with_nvrtc(source: Path, capability: int) -> bytes:
        program, size = ctypes.c_void_p(), ctypes.c_size_t()
        text = source.read_bytes()
        status = nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, source.name.encode(), 0, None, None)
        assert status == 0, f"nvrtcCreateProgram: {status}"
        flags = [flag.encode() for flag in (*FLAGS, f"--gpu-architecture=sm_{capability}", f"-I{source.parent}")]
        status = nvrtc.nvrtcCompileProgram(program, len(flags), (ctypes.c_char_p * len(flags))(*flags))
        read_size, read = (
            (nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog)
            if status
            else (nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN)
        )
        read_size(program, ctypes.byref(size))
        result = ctypes.create_string_buffer(size.value)
        read(program, result)
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
        if status:
            raise UserError(
                f"kernels: NVRTC refuses {source.name}:\n{result.value.decode()}\nUse backend=triton or torch."
            )
        return result.raw

    return Compiler(f"NVRTC {major.value}.{minor.value}", compile_with_nvrtc)
