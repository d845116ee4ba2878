"""The C++ of this folder to a shared library, by the compiler of the machine.

What was compiled is kept under a name made of the sources, the processor, the C library and what CXX says, with its
checksum at the end, so a file there is either right or of no use. A library that is kept needs no compiler any more.
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
from typing import NamedTuple

from euryale.errors import UserError
from euryale.kernels.compiled import cache_folder, keep

FOLDER = Path(__file__).parent
# A product and a sum after it become one instruction, in Clang too.
FLAGS = (
    "-std=c++17", "-O3", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast",
)  # fmt: skip
_OPENMP = ("-fopenmp",)  # left out where the compiler comes without it
_COMPILERS = ("g++", "c++", "clang++")
_OF_A_PROCESSOR = ("vendor_id", "cpu family", "model", "flags", "CPU ", "Features")  # lines of /proc/cpuinfo
_OTHERS = "Name another C++ compiler by CXX, or another folder for what it makes by TMPDIR."
_CHECKSUM = hashlib.sha256().digest_size
log = logging.getLogger(__name__)


class Library(NamedTuple):
    """What is compiled together."""

    name: str
    sources: tuple[str, ...]
    functions: tuple[str, ...]  # that return nothing


FORWARD = Library(
    "llama",
    ("draft.cpp", "llama.cpp", "walk.cpp"),
    ("euryale_read", "euryale_product", "euryale_draft", "euryale_walk"),
)
# Apart, because it compiles in a second, and bases whose forward is not compiled are drawn from too.
NOISE = Library("noise", ("noise.cpp",), ("euryale_noise",))


@cache
def load_library() -> ctypes.CDLL:
    """The functions of llama.cpp, draft.cpp and walk.cpp, compiled for this processor.

    Raises UserError where none is kept and there is no compiler, or where it refuses.
    """
    return library_for(own_processor())


@cache
def load_noise() -> ctypes.CDLL:
    """The function of noise.cpp. Raises as `load_library` does."""
    return library_for(own_processor(), what=NOISE)


def why_one_thread() -> str | None:
    """Why the library of `load_library` runs on one thread; None: it uses all that it is given. Raises as that does."""
    if load_library().euryale_has_threads():
        return None
    return (
        "it was compiled without OpenMP. Name a C++ compiler that has it by CXX, or install it for this one (clang++: "
        f"apt install libomp-dev) and remove {_kept_as(own_processor(), cache_folder(), FORWARD)}"
    )


def find_compiler() -> tuple[str, ...]:
    """Its path, and what CXX has after it. Raises UserError where there is none."""
    named = _named()
    try:
        commands = [shlex.split(named)] if named else [[name] for name in _COMPILERS]
    except ValueError as error:
        raise UserError(f"CXX must name a C++ compiler; got {named} ({error}).") from error
    for name, *more in commands:
        if path := shutil.which(name):
            return path, *more
    missing = f"CXX={named} was not found" if named else f"none of {', '.join(_COMPILERS)} was found"
    raise UserError(f"the kernels of a CPU need a C++ compiler; {missing}. Install one (apt install g++).")


def _named() -> str:
    return os.environ.get("CXX", "").strip()


def own_processor() -> tuple[str, ...]:
    """The flag for the instructions of this processor."""
    return ("-march=native",) if platform.machine() in ("x86_64", "AMD64") else ("-mcpu=native",)


def library_for(target: Sequence[str], folder: Path | None = None, what: Library = FORWARD) -> ctypes.CDLL:
    """The library for a target, from the cache or compiled now (seconds).

    What CXX names has libraries of its own: one that another compiler made is not taken in its place.
    Raises UserError as `load_library`, and where what the compiler makes does not load.
    """
    kept = _kept_as(target, folder or cache_folder(), what)
    if (library := _kept(kept, what)) is not None:
        return library
    compiler = find_compiler()
    log.info("compiling %s with %s, once for this processor", ", ".join(what.sources), compiler[0])
    try:
        with tempfile.TemporaryDirectory() as made_in:
            made = Path(made_in) / f"{what.name}.so"
            library = _compiled(compiler, target, made, what)  # what is loaded stays when its file is gone
            code = made.read_bytes()
            keep(kept, code + hashlib.sha256(code).digest())
            return library
    except OSError as error:  # of a compiler that cannot be started or links half, of a folder without room
        raise UserError(
            f"the kernels of a CPU: nothing that works came of {shlex.join(compiler)}: {error}. {_OTHERS}"
        ) from error


def _kept_as(target: Sequence[str], folder: Path, what: Library) -> Path:
    digest = hashlib.sha256()
    for source in [*(FOLDER / name for name in what.sources), *sorted(FOLDER.glob("*.h"))]:
        digest.update(hashlib.sha256(source.read_bytes()).digest())
    c_library = platform.libc_ver()  # a library made for a newer one does not load
    digest.update("\0".join([_named(), *c_library, _processor(), *target, *FLAGS, *_OPENMP]).encode())
    return folder / f"{what.name}-{digest.hexdigest()[:16]}.so"


def _compiled(compiler: Sequence[str], target: Sequence[str], made: Path, what: Library) -> ctypes.CDLL:
    """With OpenMP, and where that fails without: clang++ often comes without its own.

    Raises what the first raised, where both fail.
    """
    try:
        _compile([*compiler, *_OPENMP], target, made, what)
        return _loaded(made, what)
    except (UserError, OSError) as error:
        try:
            _compile(compiler, target, made, what)
            library = _loaded(made, what)
        except (UserError, OSError):
            raise error from None
        log.info("%s is compiled without OpenMP, because with it: %s", made.name, error)
        return library


def _compile(compiler: Sequence[str], target: Sequence[str], made: Path, what: Library) -> None:
    sources = [str(FOLDER / name) for name in what.sources]
    command = [*compiler, *FLAGS, *target, *sources, "-o", str(made)]
    english = os.environ | {"LC_ALL": "C"}
    ended = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", env=english
    )
    if ended.returncode:
        raise UserError(
            f"the kernels of a CPU: {shlex.join(compiler)} refuses {', '.join(sources)}: "
            f"{_first_error(ended.stderr)}. {_OTHERS}"
        )


def _kept(path: Path, what: Library) -> ctypes.CDLL | None:
    """The library that was kept; None where there is none, or one that was cut short or cannot be read.

    Loading what was cut short would end the process, so its checksum, which follows it, is looked at first.
    """
    try:
        content = path.read_bytes()
        if hashlib.sha256(content[:-_CHECKSUM]).digest() == content[-_CHECKSUM:]:
            return _loaded(path, what)
        reason = "it was cut short"
    except FileNotFoundError:
        return None
    except OSError as error:
        reason = str(error)
    log.warning("kernels: %s is compiled anew (%s); EURYALE_CACHE names another folder", path, reason)
    return None


def _loaded(path: Path, what: Library) -> ctypes.CDLL:
    # torch has loaded the OpenMP that the library asks for, so both share one set of threads.
    library = ctypes.CDLL(str(path))
    for name in what.functions:
        getattr(library, name).restype = None
    return library


def _processor() -> str:
    """What tells processors apart that a cache folder may be shared between.

    Not its instructions alone: an older Linux does not list the newest, and the compiler uses them all the same.
    """
    try:
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    except OSError:
        first = []
    lines = [line for line in first if line.startswith(_OF_A_PROCESSOR)]
    return "\n".join(lines) or platform.processor()


def _first_error(text: str) -> str:
    lines = [line.strip() for line in text.splitlines()]
    found = next((line for line in lines if "error" in line.lower()), lines[0] if lines else "it said nothing")
    return found.rstrip(".")
