"""Compiled CUDA kernels, loaded on a card and launched through the CUDA driver.

Tests launch the same kernels, through the same Python, on a CPU: see Module.
"""

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from euryale.kernels.cuda.compile import cubin

Size = tuple[int, int, int]
Argument = ctypes._SimpleCData | ctypes.Structure
_MAX_DYNAMIC_SHARED_BYTES = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_FREE_SHARED_BYTES = 48 << 10  # more than that a kernel must ask for


class Module(Protocol):
    """The kernels of one source."""

    def launch(
        self, kernel: str, grid: Size, block: Size, arguments: Sequence[Argument], shared_bytes: int = 0
    ) -> None:
        """Runs `kernel` with these arguments, in their order and of its types, on the current stream."""
        ...


def pointer(tensor: Tensor) -> ctypes.c_void_p:
    """The address of a tensor's first number; a null pointer for an empty one."""
    return ctypes.c_void_p(tensor.data_ptr())


@cache
def load(source: str, device: torch.device) -> Module:
    """The kernels of source.cu on a card. Raises UserError when they cannot be compiled."""
    major, minor = torch.cuda.get_device_capability(device)
    code = cubin(source, 10 * major + minor)
    with torch.cuda.device(device):
        return _DriverModule(code, device)


class _DriverModule:
    """A module of the CUDA driver in torch's own context of the card."""

    def __init__(self, code: bytes, device: torch.device) -> None:
        torch.cuda.synchronize(device)  # the context exists from here on
        self._driver = ctypes.CDLL("libcuda.so.1")
        self._device = device
        self._module = ctypes.c_void_p()
        self._kernels: dict[str, ctypes.c_void_p] = {}
        self._check(self._driver.cuModuleLoadData(ctypes.byref(self._module), code), "cuModuleLoadData")

    def launch(
        self, kernel: str, grid: Size, block: Size, arguments: Sequence[Argument], shared_bytes: int = 0
    ) -> None:
        function = self._kernels.get(kernel) or self._function(kernel, shared_bytes)
        values = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(a) for a in arguments))
        stream = ctypes.c_void_p(torch.cuda.current_stream(self._device).cuda_stream)
        with torch.cuda.device(self._device):
            status = self._driver.cuLaunchKernel(function, *grid, *block, shared_bytes, stream, values, None)
        self._check(status, kernel)

    def _function(self, kernel: str, shared_bytes: int) -> ctypes.c_void_p:
        function = ctypes.c_void_p()
        status = self._driver.cuModuleGetFunction(ctypes.byref(function), self._module, kernel.encode())
        self._check(status, kernel)
        if shared_bytes > _FREE_SHARED_BYTES:
            self._check(self._driver.cuFuncSetAttribute(function, _MAX_DYNAMIC_SHARED_BYTES, shared_bytes), kernel)
        self._kernels[kernel] = function
        return function

    def _check(self, status: int, what: str) -> None:
        if status:
            told = ctypes.c_char_p()
            self._driver.cuGetErrorString(status, ctypes.byref(told))
            reason = told.value.decode() if told.value else f"status {status}"
            raise RuntimeError(f"CUDA driver, {what}: {reason}")
