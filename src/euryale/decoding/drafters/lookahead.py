"""Lookahead decoding (Fu et al. 2024): a base drafts for itself, by Jacobi iteration and a pool of n-grams.

Every step carries a window of guesses: `window` columns, each a chain of ngram - 1 tokens that start one position
further than the column before it. What the base says after a column's last guess makes its chain an n-gram, which
goes into the row's pool; the chains then lose their first token and take the new one as their last. Meanwhile the
n-grams of the pool that begin with the root are verified. Both branches are paths of one trie, so equal beginnings
are computed once and siblings differ; a window token that is right is accepted like any other.

    column       0    1    2       position: root + column + level
    level 0     root  a    b       a follows the root and b follows a: the oldest guesses
    level 1      c    d    e       c follows the root, d follows a, e follows b
    new          f    g    h       the base's choice after c, d, e: root c f, a d g, b e h are 3-grams

The base's choice is made with the noise of its position, and guesses keep theirs when a step gains several tokens
(columns move left, and empty ones are filled), so that sampled text is iterated on as greedy text is. The pool also
holds the n-grams of prompt and answer.
"""

from collections.abc import Sequence

from euryale.base.base import Base
from euryale.decoding.config import most_nodes
from euryale.decoding.drafters.interface import Draft, Drafter, DraftInput
from euryale.decoding.drafters.padded import Nodes, PaddedDraft


class LookaheadDrafter(Drafter):
    """Needs a base alone: no training, no second model."""

    def __init__(self, base: Base, window: int, ngram: int, candidates: int, num_nodes: int) -> None:
        """num_nodes: of a step at most; n-grams come first, then the window as far as there is room."""
        self._base = base
        self._window, self._ngram, self._candidates = window, ngram, candidates
        self.num_nodes = min(num_nodes, most_nodes(window, ngram, candidates))
        self.max_depth = min(self.num_nodes - 1, max(window - 1 + ngram - 2, ngram - 1))
        self._rows: list[Iteration] = []
        self._padded = PaddedDraft(self.num_nodes, self.max_depth, base.device)

    def begin(self, num_rows: int, num_slots: int) -> "LookaheadDrafter":
        return LookaheadDrafter(self._base, self._window, self._ngram, self._candidates, self.num_nodes)

    def add(self, row: int) -> None:
        self._rows[row : row + 1] = [Iteration(self._window, self._ngram, self._candidates, self.num_nodes)]

    def swap_remove(self, row: int) -> None:
        self._rows[row] = self._rows[-1]
        self._rows.pop()

    def propose(self, draft_input: DraftInput) -> Draft:
        targets = draft_input.targets or [()] * len(self._rows)
        texts = zip(self._rows, draft_input.texts, targets, strict=True)
        return self._padded.of(draft_input.root_B, [row.nodes(text, chosen) for row, text, chosen in texts])


def pad(guesses: list[int | None], num: int) -> list[int | None]:
    """The guesses, filled up with None to so many."""
    return guesses + [None] * (num - len(guesses))


class Iteration:
    """One row's window and pool."""

    def __init__(self, window: int, ngram: int, candidates: int, num_nodes: int) -> None:
        self._ngram, self._num_nodes = ngram, num_nodes
        self._pool = Pool(candidates)
        self._num_columns, self._num_levels = window, ngram - 1
        self._window: list[list[int]] = []  # by level and column
        self._ends: list[int | None] = []  # the node of each column's last guess; None: there was no room for it
        self._num_read = 0  # tokens of the text

    def nodes(self, ids: Sequence[int], targets: Sequence[int]) -> Nodes:
        """What the next step verifies. targets: what the base chose after every node of the last one."""
        self._iterate(ids, targets)
        for end in range(max(self._num_read + 1, self._ngram), len(ids) + 1):
            self._pool.add(ids[end - self._ngram : end])
        self._num_read = len(ids)
        trie = Trie(ids[-1], self._num_nodes)
        for following in self._pool.after(ids[-1]):
            trie.insert(following)
        first = self._window[0]
        self._ends = [
            trie.insert([*first[1 : column + 1], *(level[column] for level in self._window[1:])])
            for column in range(self._num_columns)
        ]
        return trie.tokens, trie.parents

    def _iterate(self, ids: Sequence[int], targets: Sequence[int]) -> None:
        """Harvests the n-grams of the last step's window, and moves it on to where the text ends now."""
        gained = len(ids) - self._num_read
        assert gained > 0, "every step gains a token"
        moving: list[list[int | None]] = [list(level) for level in self._window[1:]]
        if targets and self._window:
            new = [None if end is None else targets[end] for end in self._ends]
            for column, token in enumerate(new):
                if token is not None:
                    self._pool.add([*(level[column] for level in self._window), token])
            moving.append(new)
        # What becomes level l stood a position further than level l did, and so does the root where it gained a token:
        # guesses stay in their column. Where it gained more they move left.
        moved = [level[gained - 1 :] for level in moving]
        self._window = [
            [
                self._fill(ids, len(ids) - 1 + column + level) if guess is None else guess
                for column, guess in enumerate(pad(moved[level] if level < len(moved) else [], self._num_columns))
            ]
            for level in range(self._num_levels)
        ]
        self._window[0][0] = ids[-1]

    @staticmethod
    def _fill(ids: Sequence[int], position: int) -> int:
        """The first guess at a position: some token of the text, which is likelier than any of the vocabulary."""
        return ids[position % len(ids)]


class Pool:
    """The n-grams that were lately met, by their first token."""

    def __init__(self, candidates: int) -> None:
        """candidates: n-grams kept with each first token."""
        self._candidates = candidates
        self._following: dict[int, list[tuple[int, ...]]] = {}  # the latest last

    def add(self, ngram: Sequence[int]) -> None:
        first, *rest = ngram
        known = self._following.setdefault(first, [])
        if tuple(rest) in known:
            known.remove(tuple(rest))
        known.append(tuple(rest))
        del known[: -self._candidates]

    def after(self, first: int) -> list[tuple[int, ...]]:
        """What may follow this token, the latest first."""
        return self._following.get(first, [])[::-1]


class Trie:
    """Paths below one root, equal beginnings shared."""

    def __init__(self, root: int, num_nodes: int) -> None:
        self.tokens, self.parents = [root], [0]
        self._num_nodes = num_nodes
        self._children: dict[tuple[int, int], int] = {}  # (node, token) -> node

    def insert(self, path: Sequence[int]) -> int | None:
        """The last node of this path; None when there is no room for all of it, and then its beginning stays."""
        node = 0
        for token in path:
            if (node, token) not in self._children:
                if len(self.tokens) == self._num_nodes:
                    return None
                self._children[node, token] = len(self.tokens)
                self.tokens.append(token)
                self.parents.append(node)
            node = self._children[node, token]
        return node
