"""One draft of rows whose trees differ in size and shape.

Rows are filled up with nodes that carry no candidate. A step has one of a few sizes, none larger than needed; where no
row found anything it is a plain step of one node.

Letters: B batch, N nodes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from euryale.decoding.drafters.interface import Draft
from euryale.decoding.tree.tree import ROOT_ONLY, Shape

_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # nodes of a step: few different shapes

Nodes = tuple[list[int], list[int]]  # tokens and parents of a row's nodes, the root first, parents before children


class PaddedDraft:
    """Drafts of at most num_nodes nodes a row, at most max_depth below the root."""

    def __init__(self, num_nodes: int, max_depth: int, device: torch.device) -> None:
        self._num_nodes, self._max_depth, self._device = num_nodes, max_depth, device
        self._root_only = Shape.of_tree(ROOT_ONLY, device)

    def of(self, root_B: Tensor, rows: Sequence[Nodes]) -> Draft:
        """The draft of rows that list the nodes which carry a candidate."""
        needed = max(len(tokens) for tokens, _ in rows)
        N = min(self._num_nodes, next(size for size in (*_SIZES, self._num_nodes) if size >= needed))
        if N == 1:
            return Draft(root_B[:, None], self._root_only)
        # The id of an empty node means nothing.
        tokens_BN = torch.tensor([row + row[:1] * (N - len(row)) for row, _ in rows], device=self._device)
        tokens_BN[:, 0] = root_B
        parents_BN = torch.tensor([above + [0] * (N - len(above)) for _, above in rows], device=self._device)
        is_real = [[True] * len(row) + [False] * (N - len(row)) for row, _ in rows]
        shape = Shape.of_parents(parents_BN, self._max_depth)
        return Draft(tokens_BN, shape, torch.tensor(is_real, device=self._device))
