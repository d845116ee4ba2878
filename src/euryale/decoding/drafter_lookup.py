"""How does text that stood here before become a draft?

Every row looks its own prompt and answer up (lookup.py). A Budget takes the likeliest nodes of the trie, a fixed Tree
the children by their rank; where there are fewer than the tree has nodes, the rest is masked. A step in which no row
finds anything is a plain step of one node.

Letters: B batch, N nodes.
"""

import torch

from euryale.decoding.draft import Draft, Known, Shape
from euryale.decoding.lookup import Guess, Memory
from euryale.decoding.tree import ROOT_ONLY, Budget, Tree
from euryale.model.base import Base

_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # nodes of a step: few different shapes, none larger than needed


class LookupDrafter:
    """Copies from the row's own text; needs no training and no model."""

    layers: tuple[int, ...] = ()

    def __init__(self, base: Base, tree: Tree | Budget) -> None:
        self.tree = tree
        self.num_nodes, self.max_depth = tree.num_nodes, tree.max_depth
        self._base = base
        self._device = base.device
        self._memories: list[Memory] = []
        self._root_only = Shape.of_tree(ROOT_ONLY, base.device)

    def begin(self, num_rows: int, num_slots: int) -> "LookupDrafter":
        return LookupDrafter(self._base, self.tree)

    def admit(self, row: int) -> None:
        self._memories[row : row + 1] = [Memory()]

    def retire(self, row: int) -> None:
        self._memories[row] = self._memories[-1]
        self._memories.pop()

    def propose(self, known: Known) -> Draft:
        rows = []
        for memory, ids in zip(self._memories, known.ids, strict=True):
            memory.read(ids)
            rows.append(arrange(memory.guess(self.max_depth), self.tree))
        needed = max(len(tokens) for tokens, _ in rows)
        N = min(self.num_nodes, next(size for size in (*_SIZES, self.num_nodes) if size >= needed))
        if N == 1:
            return Draft(known.root_B[:, None], self._root_only)
        tokens = [row + row[:1] * (N - len(row)) for row, _ in rows]  # the id of an empty node means nothing
        parents = [above + [0] * (N - len(above)) for _, above in rows]
        is_real = [[True] * len(row) + [False] * (N - len(row)) for row, _ in rows]
        tokens_BN = torch.tensor(tokens, device=self._device)
        tokens_BN[:, 0] = known.root_B
        shape = Shape.of_parents(torch.tensor(parents, device=self._device), self.max_depth)
        return Draft(tokens_BN, shape, torch.tensor(is_real, device=self._device))


def arrange(root: Guess, tree: Tree | Budget) -> tuple[list[int], list[int]]:
    """(tokens, parents) of the nodes that carry a candidate, the root first and parents before their children."""
    tokens, parents = [root.token], [0]
    if isinstance(tree, Tree):
        guesses: dict[int, Guess] = {0: root}
        place = {0: 0}
        for node in range(1, tree.num_nodes):
            above = guesses.get(tree.parents[node])
            children = above.ranked() if above is not None else []
            if tree.ranks[node] < len(children):
                guesses[node] = children[tree.ranks[node]]
                place[node] = len(tokens)
                tokens.append(guesses[node].token)
                parents.append(place[tree.parents[node]])
        return tokens, parents
    # Best first: whose parent is taken may be taken, and no child is likelier than its parent.
    open_guesses = [(guess, 0) for guess in root.children.values()]
    while open_guesses and len(tokens) < tree.num_nodes:
        best = max(range(len(open_guesses)), key=lambda index: open_guesses[index][0].chance)
        guess, parent = open_guesses.pop(best)
        open_guesses += [(child, len(tokens)) for child in guess.children.values()]
        tokens.append(guess.token)
        parents.append(parent)
    return tokens, parents
