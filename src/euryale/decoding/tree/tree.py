"""The nodes that one step verifies.

A tree is two tuples: the parent of each node and its rank among the drafter's candidates at that parent.
Node 0 is the root, the token that is already decided. Ancestors, depths and the accept walk follow from these
two. A path is the ranks from below the root down to a node: (0, 2) is the third candidate below the first.

Letters: N nodes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from euryale.errors import UserError

Path = tuple[int, ...]
MOST_PARENTS = 8  # that a dynamic tree asks in a level, if it has _NODES_A_PARENT times as many nodes or more
_NODES_A_PARENT = 8

# Number of children, always the best ones, of each path in Medusa's published 63-node tree for a 7B base
# (Cai et al. 2024, the tree `mc_sim_7b_63`): 10, 28, 23 and 2 nodes at depths 1 to 4.
_MEDUSA63_CHILDREN: dict[Path, int] = (
    {(): 10, (0,): 10, (1,): 7, (2,): 3, (3,): 2}
    | {(r,): 1 for r in range(4, 10)}
    | {(0, 0): 10, (0, 1): 3, (0, 2): 2, (1, 0): 2, (2, 0): 1}
    | {(0, r): 1 for r in range(3, 8)}
    | {(0, 0, 0): 2}
)


@dataclass(frozen=True)
class Tree:
    """A static tree; parents come before their children."""

    parents: tuple[int, ...]
    ranks: tuple[int, ...]

    def __post_init__(self) -> None:
        assert len(self.parents) == len(self.ranks) and self.parents[0] == -1 and self.ranks[0] == 0
        assert all(-1 < parent < node for node, parent in enumerate(self.parents[1:], start=1)), self.parents
        # Equal siblings would carry equal tokens, and both would be accepted.
        assert len(set(zip(self.parents, self.ranks, strict=True))) == self.num_nodes, self.ranks

    @staticmethod
    def from_paths(paths: Sequence[Sequence[int]]) -> "Tree":
        """A tree of the root and these paths.

        The chain of first candidates comes first: the likeliest path then lies in the cache as it was written and
        nothing has to move when it is accepted. Raises UserError when a path lacks its parent or comes twice.
        """
        wanted = [tuple(int(rank) for rank in path) for path in paths]
        known = set(wanted)
        for path in wanted:
            if not path or min(path) < 0 or (len(path) > 1 and path[:-1] not in known):
                raise UserError(
                    f"tree path {list(path)} has no parent in the tree. Every prefix of a path must be a path."
                )
        if len(known) != len(wanted):
            raise UserError("the tree names a path twice. Give every path once.")
        ordered = sorted(known, key=lambda path: (any(path), len(path), path))
        index: dict[Path, int] = {(): 0} | {path: node for node, path in enumerate(ordered, start=1)}
        return Tree(
            parents=(-1, *(index[path[:-1]] for path in ordered)),
            ranks=(0, *(path[-1] for path in ordered)),
        )

    @property
    def num_nodes(self) -> int:
        """The root included."""
        return len(self.parents)

    @cached_property
    def depths(self) -> tuple[int, ...]:
        depths = [0]
        for parent in self.parents[1:]:
            depths.append(depths[parent] + 1)
        return tuple(depths)

    @property
    def max_depth(self) -> int:
        return max(self.depths)

    @cached_property
    def paths(self) -> tuple[Path, ...]:
        """The path of every node; () for the root."""
        paths: list[Path] = [()]
        for node in range(1, self.num_nodes):
            paths.append((*paths[self.parents[node]], self.ranks[node]))
        return tuple(paths)

    def ancestors(self, device: torch.device | str = "cpu") -> Tensor:
        """Bool [N, N]: whether the column's node lies on the path from the root to the row's, ends included."""
        rows = [[False] * self.num_nodes for _ in range(self.num_nodes)]
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                rows[node] = list(rows[parent])
            rows[node][node] = True
        return torch.tensor(rows, dtype=torch.bool, device=device)

    def pruned(self, max_depth: int, num_ranks: int) -> "Tree":
        """The part that fits: at most max_depth deep, ranks below num_ranks (a vocabulary may be smaller)."""
        return Tree.from_paths([p for p in self.paths[1:] if len(p) <= max_depth and max(p) < num_ranks])

    def first(self, num_nodes: int) -> "Tree":
        """The first nodes of this tree: parents come before their children, so they are a tree."""
        return Tree(self.parents[:num_nodes], self.ranks[:num_nodes])

    def without_gaps(self) -> "Tree":
        """The same shape with the ranks of siblings from 0 on: candidates are then their parent's first ones."""
        renamed: dict[Path, Path] = {(): ()}
        num_children: dict[Path, int] = {}
        for path in sorted(self.paths[1:], key=lambda path: (len(path), path)):
            parent = renamed[path[:-1]]
            renamed[path] = (*parent, num_children.get(parent, 0))
            num_children[parent] = num_children.get(parent, 0) + 1
        return Tree.from_paths([renamed[path] for path in self.paths[1:]])


@dataclass(frozen=True)
class DynamicTree:
    """A number of nodes, the root included, that each step arranges anew: the likeliest first."""

    num_nodes: int
    max_depth: int
    num_parents: int | None = None  # nodes of a level that are asked for their children; None: as is usual

    @property
    def parents_asked(self) -> int:
        """Nodes of a level that are asked for their children, at most: asking is what drafting costs.

        On the bundled base two parents gave trees of 4 and 8 nodes, and three those of 16, the tokens a step that eight
        gave; trees of 64 lost 0.03 to 0.07 with four.
        """
        return self.num_parents or min(MOST_PARENTS, max(2, 1 + self.num_nodes // _NODES_A_PARENT))


ROOT_ONLY = Tree(parents=(-1,), ranks=(0,))


def chain(depth: int) -> Tree:
    """The first candidate of every head, one below the other."""
    return Tree.from_paths([(0,) * d for d in range(1, depth + 1)])


def medusa63() -> Tree:
    """Medusa's published tree: 63 nodes and the root, depth 4."""
    return Tree.from_paths([(*path, r) for path, count in _MEDUSA63_CHILDREN.items() for r in range(count)])


def check_depth(tree: Tree, name: str, num_heads: int) -> None:
    """Raises UserError when the tree is deeper than there are heads to fill it."""
    if tree.max_depth > num_heads:
        raise UserError(
            f"tree={name} is {tree.max_depth} deep, but the checkpoint has {num_heads} heads. "
            f"Use tree=chain or tree=calibrated, or train with heads.num_heads={tree.max_depth}."
        )


class Shape(NamedTuple):
    """How N nodes hang together. Node 0 is the root and parents come before their children."""

    parents_RN: Tensor  # the root's is itself
    depths_RN: Tensor
    ancestors_RNN: Tensor  # bool: whether the column's node lies on the path from the root to the row's, ends included

    @staticmethod
    def of_tree(tree: Tree, device: torch.device | str = "cpu") -> "Shape":
        """The shape of a fixed tree, shared by all rows."""
        return Shape(
            torch.tensor([[max(parent, 0) for parent in tree.parents]], device=device),
            torch.tensor([tree.depths], device=device),
            tree.ancestors(device)[None],
        )

    @staticmethod
    def of_parents(parents_RN: Tensor, max_depth: int) -> "Shape":
        """The shape that these parents make; nothing waits for the device.

        Paths double in every round: a node sees what its ancestor so far sees.
        """
        N = parents_RN.shape[1]
        self_NN = torch.eye(N, dtype=torch.float32, device=parents_RN.device)
        reach_RNN = torch.maximum(self_NN[parents_RN], self_NN)
        reached = 1
        while reached < max_depth:
            reach_RNN = (reach_RNN @ reach_RNN).clamp(max=1)
            reached *= 2
        ancestors_RNN = reach_RNN > 0
        return Shape(parents_RN, ancestors_RNN.sum(-1) - 1, ancestors_RNN)
