"""Tensors in large pages: apart from each other, aligned, and the same where there are no such pages."""

import mmap
from typing import NoReturn

import pytest
import torch
from torch import Tensor

from euryale.kernels import large_pages
from euryale.kernels.large_pages import PAGE, LargePages

SHAPES = [((3, 5), torch.float32), ((0,), torch.float16), ((1,), torch.uint8), ((7, 11), torch.bfloat16)]


def filled(memory: LargePages) -> list[Tensor]:
    tensors = [memory.empty(shape, dtype) for shape, dtype in SHAPES]
    for number, tensor in enumerate(tensors):
        tensor.fill_(number + 1)
    return tensors


def check(tensors: list[Tensor]) -> None:
    for number, (tensor, (shape, dtype)) in enumerate(zip(tensors, SHAPES, strict=True)):
        assert (tensor.shape, tensor.dtype) == (shape, dtype) and tensor.is_contiguous()
        assert (tensor == number + 1).all()


def test_tensors_lie_apart_each_from_a_cache_line_on() -> None:
    tensors = filled(LargePages())
    check(tensors)
    assert all(tensor.data_ptr() % 64 == 0 for tensor in tensors)


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="large pages are of Linux")
def test_a_chunk_begins_with_a_page_and_one_that_is_too_small_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_pages, "_CHUNK", PAGE)
    memory = LargePages()
    first, second, large = (memory.empty((size,), torch.uint8) for size in (100, PAGE - 128, PAGE + 1))
    assert first.data_ptr() % PAGE == 0 and second.data_ptr() == first.data_ptr() + 128
    assert large.data_ptr() % PAGE == 0
    for number, tensor in enumerate((first, second, large)):
        tensor.fill_(number)
    assert [int(x.float().mean()) for x in (first, second, large)] == [0, 1, 2]


def test_tensors_outlive_what_made_them() -> None:
    memory = LargePages()
    tensors = filled(memory)
    del memory
    check(tensors)


@pytest.mark.parametrize("is_known", [False, True])
def test_where_there_are_no_large_pages_it_is_memory_as_any_other(
    is_known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise OSError(22, "Invalid argument")

    if is_known:
        monkeypatch.setattr(mmap, "mmap", refuse)
    elif hasattr(mmap, "MADV_HUGEPAGE"):
        monkeypatch.delattr(mmap, "MADV_HUGEPAGE")
    check(filled(LargePages()))
