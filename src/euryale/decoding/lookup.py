"""What came next when the same words stood here before?

One row's prompt and answer, indexed by their last few tokens. The places that end as the text ends now are compared
further back; what followed them is merged into a trie whose nodes carry a guess at their chance. Saxena 2023 (prompt
lookup decoding) takes one such continuation; Oliaro et al. 2025 (SuffixDecoding) merge many.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

_ANCHOR = 3  # tokens that the index knows; longer matches are compared
_LONGEST = 16  # tokens compared at most
_MOST_PLACES = 32  # the latest ones: a common token stands in many places


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
        """The text so far. Its own end is no place to copy from, so it waits for the next token."""
        assert len(ids) >= self._num_indexed, "the text of a row only grows"
        self._ids = ids
        for place in range(self._num_indexed + 1, len(ids)):
            for length in range(1, min(_ANCHOR, place) + 1):
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
        for anchor in range(min(_ANCHOR, end), 0, -1):
            places = self._places.get(tuple(ids[end - anchor :]))
            if places:
                return [(place, self._agreement(place, anchor)) for place in reversed(places[-_MOST_PLACES:])]
        return []

    def _agreement(self, place: int, known: int) -> int:
        ids, end = self._ids, len(self._ids)
        while known < min(_LONGEST, place) and ids[place - 1 - known] == ids[end - 1 - known]:
            known += 1
        return known
