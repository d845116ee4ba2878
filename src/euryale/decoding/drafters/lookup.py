"""Prompt lookup: copies what followed the same tokens earlier in prompt and answer.

Each row's text is indexed by its last few tokens. The places that end as the text ends now are compared further back;
what followed them is merged into a trie whose nodes carry a guess at their probability. Saxena 2023 (prompt lookup
decoding) takes one such continuation; Oliaro et al. 2025 (SuffixDecoding) merge many. A DynamicTree takes the likeliest
nodes of the trie, a fixed Tree the children by their rank; where there are fewer than the tree has nodes, the rest is
masked (padded.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from euryale.base.base import Base
from euryale.decoding.drafters.interface import Draft, Drafter, DraftInput
from euryale.decoding.drafters.padded import Nodes, PaddedDraft
from euryale.decoding.drafters.text_lookup import ANCHOR, LONGEST, MOST_PLACES, TextLookup
from euryale.decoding.tree.tree import DynamicTree, Tree


@dataclass
class Guess:
    """A token that may come, and what may come after it."""

    token: int
    chance: float = 0.0
    children: dict[int, "Guess"] = field(default_factory=dict)

    def ranked(self) -> list["Guess"]:
        """The children, likeliest first; equal ones in the order of their latest place."""
        return sorted(self.children.values(), key=lambda child: -child.chance)


class Memory:
    """One row's text. It may only grow: reading it again costs what is new."""

    def __init__(self) -> None:
        self._ids: Sequence[int] = ()
        self._num_indexed = 0
        self._places: dict[tuple[int, ...], list[int]] = {}  # tokens -> where the next token stands, oldest first

    def read(self, ids: Sequence[int]) -> None:
        """The text so far. Its own end is not a place to copy from, so it waits for the next token."""
        assert len(ids) >= self._num_indexed, "the text of a row only grows"
        self._ids = ids
        for place in range(self._num_indexed + 1, len(ids)):
            for length in range(1, min(ANCHOR, place) + 1):
                self._places.setdefault(tuple(ids[place - length : place]), []).append(place)
        self._num_indexed = max(len(ids) - 1, 0)

    def guess(self, depth: int) -> Guess:
        """A trie of at most `depth` tokens below the text's last one; without children when nothing matches.

        A place whose last m tokens agree weighs 4^m, and holds on for another token with chance m / (m + 1): both are
        rules of thumb, only the order of the nodes depends on them. A child is never likelier than its parent.
        """
        root = Guess(self._ids[-1], 1.0)
        matches = self._matches()
        whole = sum(4.0**length for _, length in matches)
        for place, length in matches:
            share, node = 4.0**length / whole, root
            for token in self._ids[place : place + depth]:
                share *= length / (length + 1)
                node = node.children.setdefault(token, Guess(token))
                node.chance += share
        return root

    def chain(self, depth: int) -> list[int]:
        """The likeliest continuation, at most `depth` tokens."""
        node, chain = self.guess(depth), []
        while node.children:
            node = node.ranked()[0]
            chain.append(node.token)
        return chain

    def _matches(self) -> list[tuple[int, int]]:
        """(place, how many tokens before it are those at the end), of the longest anchor found; latest first."""
        ids, end = self._ids, len(self._ids)
        for anchor in range(min(ANCHOR, end), 0, -1):
            places = self._places.get(tuple(ids[end - anchor :]))
            if places:
                return [(place, self._agreement(place, anchor)) for place in reversed(places[-MOST_PLACES:])]
        return []

    def _agreement(self, place: int, known: int) -> int:
        ids, end = self._ids, len(self._ids)
        while known < min(LONGEST, place) and ids[place - 1 - known] == ids[end - 1 - known]:
            known += 1
        return known


class LookupDrafter(Drafter):
    """Copies from the row's own text; needs no training and no model."""

    def __init__(self, base: Base, tree: Tree | DynamicTree) -> None:
        self.tree = tree
        self.num_nodes, self.max_depth = tree.num_nodes, tree.max_depth
        self._base = base
        self._memories: list[Memory] = []
        self.is_on_device = self.searches_text = isinstance(tree, DynamicTree)
        self._padded = PaddedDraft(self.num_nodes, self.max_depth, base.device)

    def begin(self, num_rows: int, num_slots: int) -> "LookupDrafter":
        return LookupDrafter(self._base, self.tree)

    def add(self, row: int) -> None:
        self._memories[row : row + 1] = [Memory()]

    def swap_remove(self, row: int) -> None:
        self._memories[row] = self._memories[-1]
        self._memories.pop()

    def propose(self, draft_input: DraftInput) -> Draft:
        if draft_input.text is not None:
            text = TextLookup(draft_input.text, self.max_depth)
            return text.draft(draft_input.root_B, self.num_nodes, self.max_depth)
        rows = []
        for memory, ids in zip(self._memories, draft_input.texts, strict=True):
            memory.read(ids)
            rows.append(arrange(memory.guess(self.max_depth), self.tree))
        return self._padded.of(draft_input.root_B, rows)


def arrange(root: Guess, tree: Tree | DynamicTree) -> Nodes:
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
