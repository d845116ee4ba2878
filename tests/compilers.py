"""Which compilers this machine has; tests of what they compile are skipped without them."""

import shutil

import pytest

from euryale.errors import UserError
from euryale.kernels.cpu.compile import find_compiler


def why_none() -> str:
    """What find_compiler says; "" where there is one."""
    try:
        find_compiler()
    except UserError as error:
        return str(error)
    return ""


needs_compiler = pytest.mark.skipif(bool(why_none()), reason=why_none())


needs_nvcc = pytest.mark.skipif(
    not (shutil.which("nvcc") and shutil.which("gcc")), reason="nvcc, or the gcc that it calls, is not installed"
)


def skip_without_compiler() -> None:
    """Ends the test that calls it where there is no compiler; what one refuses to compile is no reason to."""
    if reason := why_none():
        pytest.skip(reason)
