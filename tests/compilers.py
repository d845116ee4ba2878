"""Whether this machine has a C++ compiler, without which the tests of what is compiled are skipped."""

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


def skip_without_compiler() -> None:
    """Ends the test that calls it where there is no compiler; what one refuses to compile is no reason to."""
    if reason := why_none():
        pytest.skip(reason)
