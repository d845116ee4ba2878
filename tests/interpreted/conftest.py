"""Tests that run in a process of their own, with TRITON_INTERPRET=1: see tests/test_kernels_interpreted.py."""

from collections.abc import Iterator
from functools import cache
from inspect import getmembers

import pytest
import torch
from triton import language
from triton.runtime import interpreter

torch.set_num_threads(1)


@cache
def names_of_builtins(module_or_class: object) -> list[str]:
    return [name for name, member in getmembers(module_or_class) if language.core.is_builtin(member)]


def patch_builtins(module_or_class: object, builder: object, scope: object) -> None:
    """What the interpreter does before every call of a kernel or of a function of one, except that it then looks
    through all members of triton.language again: a fifth of the time."""
    for name in names_of_builtins(module_or_class):
        member = getattr(module_or_class, name)
        if language.core.is_builtin(member):  # not if a kernel that is running has replaced it already
            interpreter._patch_attr(module_or_class, name, member, builder, scope)


interpreter._patch_builtin = patch_builtins


@pytest.fixture(autouse=True)
def scratch_is_nan() -> Iterator[None]:
    """torch then fills new memory with NaN, so that what is read without having been written shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.zeros(1).new_empty(2).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
