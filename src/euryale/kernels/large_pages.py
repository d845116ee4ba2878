"""Memory in large pages, for weights that every step reads from end to end.

With pages of 4 KB a processor translates an address anew after every 64 cache lines, and its own reading ahead ends
there. Linux gives pages of 2 MB to those that ask (MADV_HUGEPAGE of madvise(2), unless "never" is chosen in
/sys/kernel/mm/transparent_hugepage/enabled). Elsewhere this is memory as any other.
"""

import mmap
from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

PAGE = 2 << 20
_CHUNK = 32 << 20  # bytes that are asked for at once; what is not written to takes no memory
_LINE = 64


class LargePages:
    """Tensors that lie one after the other. Their memory is free again when all that share a chunk are gone."""

    def __init__(self) -> None:
        self._rest = torch.empty(0, dtype=torch.uint8)  # of the latest chunk

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor on the CPU, beginning at a cache line."""
        num_bytes = prod(shape) * dtype.itemsize
        size = -(-num_bytes // _LINE) * _LINE
        if len(self._rest) < size:
            self._rest = _chunk(max(size, _CHUNK))
        part, self._rest = self._rest[:num_bytes], self._rest[size:]
        return part.view(dtype).view(*shape)


def _chunk(num_bytes: int) -> Tensor:
    """Bytes from a page's beginning on."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(num_bytes, dtype=torch.uint8)
    try:
        # Private: pages of memory that processes share are another setting.
        memory = mmap.mmap(-1, num_bytes + PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_HUGEPAGE)
    except OSError:  # a kernel without them
        return torch.empty(num_bytes, dtype=torch.uint8)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    return whole[-whole.data_ptr() % PAGE :][:num_bytes]
