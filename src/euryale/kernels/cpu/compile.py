"""The C++ of this folder to a shared library, by the compiler of the machine.

What was compiled is kept under a name made of the sources, the compiler and the processor, so a file there is either
right or of no use.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from euryale.errors import UserError
from euryale.kernels.compiled import cache_folder, keep

FOLDER = Path(__file__).parent
FLAGS = ("-std=c++17", "-O3", "-fopenmp", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math")
_COMPILERS = ("g++", "c++", "clang++")
log = logging.getLogger(__name__)


@cache
def load_library() -> ctypes.CDLL:
    """The functions of llama.cpp, compiled for this processor.

    Raises UserError where there is no compiler, or where it refuses.
    """
    return library_for(find_compiler(), own_processor())


def find_compiler() -> str:
    """Its path. Raises UserError where there is none."""
    named = os.environ.get("CXX")
    for name in (named,) if named else _COMPILERS:
        if path := shutil.which(name):
            return path
    missing = f"CXX={named} was not found" if named else f"none of {', '.join(_COMPILERS)} was found"
    raise UserError(
        f"the compiled forward needs a C++ compiler on its first use; {missing}. Install one (apt install g++), or "
        "leave base.quantization=int4 out."
    )


def own_processor() -> tuple[str, ...]:
    """The flag for the instructions of this processor."""
    return ("-march=native",) if platform.machine() in ("x86_64", "AMD64") else ("-mcpu=native",)


def library_for(compiler: str, target: Sequence[str], folder: Path | None = None) -> ctypes.CDLL:
    """The library for a target, from the cache or compiled now (seconds).

    Raises UserError where the compiler refuses.
    """
    digest = hashlib.sha256()
    for source in sorted([*FOLDER.glob("*.cpp"), *FOLDER.glob("*.h")]):
        digest.update(hashlib.sha256(source.read_bytes()).digest())
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
    digest.update("\0".join([version, _processor(), *target, *FLAGS]).encode())
    kept = (folder or cache_folder()) / f"llama-{digest.hexdigest()[:16]}.so"
    if kept.is_file():
        return _loaded(kept)
    log.info("the compiled forward: compiling it with %s, once for this processor", compiler)
    with tempfile.TemporaryDirectory() as made_in:
        made = Path(made_in) / "llama.so"
        command = [compiler, *FLAGS, *target, str(FOLDER / "llama.cpp"), "-o", str(made)]
        ended = subprocess.run(command, capture_output=True, text=True)
        if ended.returncode:
            raise UserError(
                f"the compiled forward: {compiler} refuses {FOLDER / 'llama.cpp'}: {_first_error(ended.stderr)}. Name "
                "another compiler by CXX, or leave base.quantization=int4 out."
            )
        keep(kept, made.read_bytes())
        return _loaded(made)  # what is loaded stays when its file is gone


def _loaded(path: Path) -> ctypes.CDLL:
    # torch has loaded the OpenMP that the library asks for, so both share one set of threads.
    library = ctypes.CDLL(str(path))
    for name in ("euryale_read", "euryale_product"):
        getattr(library, name).restype = None
    return library


def _processor() -> str:
    """What tells processors apart that a cache folder may be shared between."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())


def _first_error(text: str) -> str:
    lines = [line.strip() for line in text.splitlines()]
    return next((line for line in lines if "error" in line), lines[0] if lines else "it said nothing")
