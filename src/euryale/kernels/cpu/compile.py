"""The C++ of this folder to a shared library, by the compiler of the machine.

What was compiled is kept under a name made of the sources, the compiler and the processor, with its checksum at the
end, so a file there is either right or of no use.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from euryale.errors import UserError
from euryale.kernels.compiled import cache_folder, keep

FOLDER = Path(__file__).parent
# A product and a sum after it become one instruction, in Clang too.
FLAGS = (
    "-std=c++17", "-O3", "-fopenmp", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast",
)  # fmt: skip
_COMPILERS = ("g++", "c++", "clang++")
_CHECKSUM = hashlib.sha256().digest_size
log = logging.getLogger(__name__)


@cache
def load_library() -> ctypes.CDLL:
    """The functions of llama.cpp, draft.cpp and walk.cpp, compiled for this processor.

    Raises UserError where there is no compiler, or where it refuses.
    """
    return library_for(find_compiler(), own_processor())


def find_compiler() -> tuple[str, ...]:
    """Its path, and what CXX has after it. Raises UserError where there is none."""
    named = os.environ.get("CXX", "")
    try:
        commands = [shlex.split(named)] if named.strip() else [[name] for name in _COMPILERS]
    except ValueError as error:
        raise UserError(f"CXX must name a C++ compiler; got {named} ({error}).") from error
    for name, *more in commands:
        if path := shutil.which(name):
            return path, *more
    missing = f"CXX={named} was not found" if named.strip() else f"none of {', '.join(_COMPILERS)} was found"
    raise UserError(
        f"the compiled forward needs a C++ compiler; {missing}. Install one (apt install g++), or leave "
        "base.quantization=int4 out."
    )


def own_processor() -> tuple[str, ...]:
    """The flag for the instructions of this processor."""
    return ("-march=native",) if platform.machine() in ("x86_64", "AMD64") else ("-mcpu=native",)


def library_for(compiler: Sequence[str], target: Sequence[str], folder: Path | None = None) -> ctypes.CDLL:
    """The library for a target, from the cache or compiled now (seconds).

    Raises UserError where the compiler refuses, and where what it makes does not load.
    """
    kept = (folder or cache_folder()) / f"llama-{_digest(compiler, target)}.so"
    if (library := _kept(kept)) is not None:
        return library
    log.info("the compiled forward: compiling it with %s, once for this processor", compiler[0])
    try:
        with tempfile.TemporaryDirectory() as made_in:
            made = Path(made_in) / "llama.so"
            _compile(compiler, target, made)
            library = _loaded(made)  # what is loaded stays when its file is gone
            code = made.read_bytes()
            keep(kept, code + hashlib.sha256(code).digest())
            return library
    except OSError as error:  # of a compiler that cannot be started or links half, of a folder without room
        raise UserError(
            f"the compiled forward: nothing that works came of {shlex.join(compiler)}: {error}. Name another C++ "
            "compiler by CXX, or another folder for what it makes by TMPDIR, or leave base.quantization=int4 out."
        ) from error


def _digest(compiler: Sequence[str], target: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for source in sorted([*FOLDER.glob("*.cpp"), *FOLDER.glob("*.h")]):
        digest.update(hashlib.sha256(source.read_bytes()).digest())
    try:
        version = _run([*compiler, "--version"]).stdout
    except OSError:  # compiling says so
        version = ""
    digest.update("\0".join([version, *compiler[1:], _processor(), *target, *FLAGS]).encode())
    return digest.hexdigest()[:16]


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    english = os.environ | {"LC_ALL": "C"}
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", env=english
    )


def _compile(compiler: Sequence[str], target: Sequence[str], made: Path) -> None:
    sources = [str(path) for path in sorted(FOLDER.glob("*.cpp"))]
    ended = _run([*compiler, *FLAGS, *target, *sources, "-o", str(made)])
    if ended.returncode:
        raise UserError(
            f"the compiled forward: {shlex.join(compiler)} refuses {', '.join(sources)}: "
            f"{_first_error(ended.stderr)}. Name another C++ compiler by CXX, or leave base.quantization=int4 out."
        )


def _kept(path: Path) -> ctypes.CDLL | None:
    """The library that was kept; None where there is none, or one that was cut short or cannot be read.

    Loading what was cut short would end the process, so its checksum, which follows it, is looked at first.
    """
    try:
        content = path.read_bytes()
        if hashlib.sha256(content[:-_CHECKSUM]).digest() == content[-_CHECKSUM:]:
            return _loaded(path)
        reason = "it was cut short"
    except FileNotFoundError:
        return None
    except OSError as error:
        reason = str(error)
    log.warning("kernels: %s is compiled anew (%s); EURYALE_CACHE names another folder", path, reason)
    return None


def _loaded(path: Path) -> ctypes.CDLL:
    # torch has loaded the OpenMP that the library asks for, so both share one set of threads.
    library = ctypes.CDLL(str(path))
    for name in ("euryale_read", "euryale_product", "euryale_draft", "euryale_walk"):
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
    found = next((line for line in lines if "error" in line.lower()), lines[0] if lines else "it said nothing")
    return found.rstrip(".")
