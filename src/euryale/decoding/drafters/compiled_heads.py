"""Trees of the trained heads in one call of C++ (kernels/cpu/draft.cpp), where the base is read by compiled products.

It takes what decoding asks in most steps: heads of kind medusa and hydra, trees fixed and dynamic, rows at any
temperature. Where scores are changed by processors, or candidates are draws, the levels of heads.py are asked one by
one; both draft the same but for scores that rounding makes equal.

Letters: B batch, N nodes, C numbers of the states, V vocabulary.
"""

import ctypes
from array import array
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from euryale.decoding.drafters.head_matrices import Corrected, Finish, HeadMatrices
from euryale.decoding.drafters.interface import Draft, DraftInput
from euryale.decoding.drafters.tree_growth import FixedGrowth, TreeGrowth
from euryale.decoding.tree.tree import Shape
from euryale.kernels.cpu.compile import load_library
from euryale.kernels.cpu_matrix import CMatrix, CpuLinear
from euryale.kernels.rms_norm import NORMALISE_EPS


class _Block(ctypes.Structure):
    """struct Block of heads.h."""

    _fields_ = [("in", CMatrix), ("out", CMatrix), ("is_residual", ctypes.c_int32)]


class _Head(ctypes.Structure):
    """struct Head of heads.h."""

    _fields_ = [
        *((name, CMatrix) for name in ("known", "output", "narrow", "widen")),
        ("blocks", ctypes.POINTER(_Block)),
        ("num_blocks", ctypes.c_int32),
    ]


class _Heads(ctypes.Structure):
    """struct Heads of heads.h."""

    _fields_ = [
        ("in", CMatrix),
        ("heads", ctypes.POINTER(_Head)),
        ("embeddings", ctypes.c_void_p),
        ("draft_ids", ctypes.c_void_p),
        *((name, ctypes.c_int32) for name in ("num_heads", "D", "C", "F", "V")),
        *((name, ctypes.c_int32) for name in ("reads_root", "reads_path", "induction", "is_bfloat16")),
        ("normalise_eps", ctypes.c_float),
    ]


class _Step(ctypes.Structure):
    """struct Step of heads.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("states", "roots", "noise", "temperatures", "texts", "lengths")),
        *((name, ctypes.c_int64) for name in ("state_stride", "noise_row", "noise_level")),
        *((name, ctypes.c_int32) for name in ("B", "threads")),
    ]


class _Tree(ctypes.Structure):
    """struct Tree of draft.cpp."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("parents", "ranks", "usual_halves")),
        *((name, ctypes.c_int32) for name in ("num_nodes", "depth", "num_ranks", "num_parents")),
    ]


class _Drafts(ctypes.Structure):
    """struct Drafts of draft.cpp."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("tokens", "parents", "depths", "ancestors")]


class HostTexts:
    """The live rows' texts as C++ reads them."""

    def __init__(self) -> None:
        self._rows: list[array[int]] = []

    def add(self, row: int) -> None:
        """Makes `row` live with a new text: an ended row's place, or the next after the last."""
        self._rows[row : row + 1] = [array("i")]

    def swap_remove(self, row: int) -> None:
        """Removes an ended row; the last row takes its slot."""
        self._rows[row] = self._rows[-1]
        self._rows.pop()

    def read(self, texts: Sequence[Sequence[int]]) -> tuple[Any, Any]:
        """Takes in what is new of each row's text, whose last token is the root; their addresses and lengths."""
        for row, text in zip(self._rows, texts, strict=True):
            row.extend(text[len(row) :])
        addresses, lengths = zip(*(row.buffer_info() for row in self._rows), strict=True)
        return (ctypes.c_void_p * len(texts))(*addresses), (ctypes.c_int32 * len(texts))(*lengths)


class CompiledHeads:
    """Drafts trees of one form."""

    @staticmethod
    def of(matrices: HeadMatrices, growth: TreeGrowth) -> "CompiledHeads | None":
        """None: the base is not read by compiled products or embeds in another way, or the tree asks too many ranks."""
        embedding = matrices.base.model.get_input_embeddings()
        if not matrices.bits or type(embedding) is not nn.Embedding or not growth.max_depth:
            return None
        if embedding.weight.dtype != matrices.base.dtype:
            return None
        if isinstance(growth, FixedGrowth) and max(growth.tree.ranks) >= matrices.num_candidates:
            return None
        return CompiledHeads(matrices, growth, embedding.weight.detach().contiguous())

    def __init__(self, matrices: HeadMatrices, growth: TreeGrowth, embeddings_VD: Tensor) -> None:
        """matrices: prepared for the depth of the tree."""
        self._draft: Callable[..., None] = load_library().euryale_draft
        depth, base, draft_ids = growth.max_depth, matrices.base, matrices.draft_ids
        self._num_nodes, self._dtype, self._induction = growth.num_nodes, base.dtype, matrices.induction
        self._shape = growth.shape if isinstance(growth, FixedGrowth) else None
        first, D = _matrix(matrices.entries[depth]), base.hidden_size
        heads = (_Head * depth)(*(_head(matrices, k) for k in range(depth)))
        self._heads = _Heads(
            first, heads, embeddings_VD.data_ptr(), None if draft_ids is None else draft_ids.data_ptr(), depth, D,
            matrices.num_states * D, first.outputs // depth, matrices.num_candidates, matrices.reads_root,
            matrices.reads_path, matrices.induction, base.dtype == torch.bfloat16, NORMALISE_EPS,
        )  # fmt: skip
        self._tree, arrays = _tree(growth)
        self._kept = matrices, embeddings_VD, draft_ids, heads, arrays  # what C++ has addresses of

    def takes(self, draft_input: DraftInput) -> bool:
        """Whether it drafts from this; else the levels are asked one by one."""
        is_plain = draft_input.process is None and not draft_input.draws and draft_input.text is None
        return is_plain and draft_input.hidden_BD.dtype == self._dtype  # not of a base that was moved since

    def propose(self, draft_input: DraftInput, texts: HostTexts) -> Draft:
        """As Drafter.propose; texts: of the live rows, read where heads look for what followed earlier."""
        states_BC, roots_B = draft_input.hidden_BD, draft_input.root_B.contiguous()
        B, N = len(roots_B), self._num_nodes
        assert states_BC.stride(1) == 1 and states_BC.shape[1] == self._heads.C
        noise_BPV, temperature_B = draft_input.noise_BPV, None
        if noise_BPV is not None:
            temperature_B = torch.as_tensor(draft_input.temperature_B11, dtype=torch.float32).flatten().expand(B)
            temperature_B = temperature_B.contiguous()
            assert noise_BPV.dtype == torch.float32 and noise_BPV.stride(2) == 1, noise_BPV.stride()
        addresses, lengths = texts.read(draft_input.texts) if self._induction else (None, None)
        step = _Step(
            states_BC.data_ptr(), roots_B.data_ptr(), _address(noise_BPV), _address(temperature_B),
            addresses and ctypes.addressof(addresses), lengths and ctypes.addressof(lengths), states_BC.stride(0),
            *((0, 0) if noise_BPV is None else noise_BPV.stride()[:2]), B, torch.get_num_threads(),
        )  # fmt: skip
        tokens_BN = torch.empty(B, N, dtype=torch.long)
        shape = self._shape or Shape(
            torch.empty(B, N, dtype=torch.long),
            torch.empty(B, N, dtype=torch.long),
            torch.empty(B, N, N, dtype=torch.bool),
        )
        parts = (None, None, None) if self._shape is not None else (part.data_ptr() for part in shape)
        drafts = _Drafts(tokens_BN.data_ptr(), *parts)
        self._draft(*map(ctypes.byref, (self._heads, self._tree, step, drafts)))
        return Draft(tokens_BN, shape)


def _head(matrices: HeadMatrices, k: int) -> _Head:
    blocks = (_Block * len(matrices.bodies[k]))(*map(_block, matrices.bodies[k]))
    output = matrices.outputs[k]
    parts = (output.shared, output.narrow, output.widen) if isinstance(output, Corrected) else (output, None, None)
    return _Head(_matrix(matrices.paths[k]), *map(_matrix, parts), blocks, len(blocks))


def _block(body: Finish) -> _Block:
    return _Block(_matrix(body.entry), _matrix(body.out), body.is_residual)


def _matrix(linear: object) -> CMatrix:
    """One without outputs stands for none."""
    if linear is None:
        return CMatrix()
    assert isinstance(linear, CpuLinear), type(linear)
    return linear.weight.c


def _tree(growth: TreeGrowth) -> tuple[_Tree, object]:
    """And what it has addresses of."""
    size = growth.num_nodes, growth.max_depth
    if isinstance(growth, FixedGrowth):
        numbers = torch.tensor([growth.tree.parents, growth.tree.ranks], dtype=torch.int32)
        return _Tree(numbers[0].data_ptr(), numbers[1].data_ptr(), None, *size, 0, 0), numbers
    halves_KR = None if growth.usual_halves_KR is None else growth.usual_halves_KR.contiguous()
    return _Tree(None, None, _address(halves_KR), *size, growth.num_ranks, growth.num_parents), halves_KR


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
