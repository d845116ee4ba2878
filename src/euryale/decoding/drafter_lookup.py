"""How does text that stood here before become a draft?

Every row looks its own prompt and answer up (lookup.py). A Budget takes the likeliest nodes of the trie, a fixed Tree
the children by their rank; where there are fewer than the tree has nodes, the rest is masked (ragged.py).
"""

from euryale.decoding.draft import Draft, Known, TextReader
from euryale.decoding.lookup import Guess, Memory
from euryale.decoding.ragged import Nodes, RaggedDraft
from euryale.decoding.tree import Budget, Tree
from euryale.model.base import Base


class LookupDrafter:
    """Copies from the row's own text; needs no training and no model."""

    layers: tuple[int, ...] = ()
    reader: TextReader | None = None

    def __init__(self, base: Base, tree: Tree | Budget) -> None:
        self.tree = tree
        self.num_nodes, self.max_depth = tree.num_nodes, tree.max_depth
        self._base = base
        self._memories: list[Memory] = []
        self._ragged = RaggedDraft(self.num_nodes, self.max_depth, base.device)

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
        return self._ragged.of(known.root_B, rows)


def arrange(root: Guess, tree: Tree | Budget) -> Nodes:
    """The nodes that carry a candidate."""
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
