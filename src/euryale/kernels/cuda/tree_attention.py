"""Launches tree_attention.cu. Takes bfloat16, head widths 64 and 128, at most 64 nodes and 16 query heads a group."""

import ctypes

import torch
from torch import Tensor

from euryale.kernels.cuda.module import Module, load, pointer
from euryale.kernels.tree_split import MOST_GROUP, MOST_NODES, TILE, split_size

BLOCK_M = 64
THREADS = 128
LOG2_E = 1.4426950408889634
NO_WINDOW = 2**31 - 1


class _Strides(ctypes.Structure):
    _fields_ = [(name, ctypes.c_longlong) for name in ("b", "h", "s")]


class _Tree(ctypes.Structure):
    _fields_ = [
        ("lengths", ctypes.c_void_p),
        ("ancestors", ctypes.c_void_p),
        ("stride", ctypes.c_longlong),
        *((name, ctypes.c_int) for name in ("N", "group", "G", "splits", "split", "window")),
    ]


def tree_attention(
    q_BNHD: Tensor,
    k_BGSD: Tensor,
    v_BGSD: Tensor,
    lengths_B: Tensor,
    ancestors_RNW: Tensor,
    scale: float,
    window: int | None = None,
    split: int | None = None,
    module: Module | None = None,
) -> Tensor:
    """reference.tree_attention. `split`: slots of a split, a multiple of TILE; None: split_size."""
    B, N, H, D = q_BNHD.shape
    G, S = k_BGSD.shape[1:3]
    split = split or split_size(S)
    assert H % G == 0 and H // G <= MOST_GROUP and N <= MOST_NODES and D in (64, 128), (H, G, N, D)
    assert split % TILE == 0 and lengths_B.dtype == ancestors_RNW.dtype == torch.int32
    assert ancestors_RNW.is_contiguous() and ancestors_RNW.data_ptr() % 8 == 0
    for x in (q_BNHD, k_BGSD, v_BGSD):  # numbers are read eight at a time
        assert x.dtype == torch.bfloat16 and x.stride(3) == 1 and x.data_ptr() % 16 == 0, (x.dtype, x.stride())
        assert all(stride % 8 == 0 for stride in x.stride()[:3]), x.stride()
    splits = -(-S // split)
    part = q_BNHD.new_empty((B, G, splits, N * H // G, D), dtype=torch.float32)
    stats = q_BNHD.new_empty((B, G, splits, N * H // G, 2), dtype=torch.float32)
    out = q_BNHD.new_empty((B, N, H, D))
    tree = _Tree(
        lengths_B.data_ptr(), ancestors_RNW.data_ptr(), N if len(ancestors_RNW) > 1 else 0,
        N, H // G, G, splits, split, window or NO_WINDOW,
    )  # fmt: skip
    q_strides = _Strides(q_BNHD.stride(0), q_BNHD.stride(2), q_BNHD.stride(1))
    arguments = (
        pointer(q_BNHD), pointer(k_BGSD), pointer(v_BGSD), q_strides, _Strides(*k_BGSD.stride()[:3]),
        _Strides(*v_BGSD.stride()[:3]), tree, ctypes.c_float(scale * LOG2_E), pointer(part), pointer(stats),
    )  # fmt: skip
    kernels = module or load("tree_attention", q_BNHD.device)
    blocks = -(-N * H // G // BLOCK_M)
    kernels.launch(f"prefix_{D}", (G * blocks, splits, B), (THREADS, 1, 1), arguments)
    kernels.launch(f"tail_{D}", (N, G, B), (THREADS, 1, 1), (*arguments, pointer(out)))
    return out
