"""Simulated tau: the tokens that steps over a known text would have gained with a given tree.

The share of positions at which a path is right is not the share of steps: a step that gains much passes over the easy
positions it has accepted, and the next one begins where a guess was wrong. On text of changing difficulty the sum of
the shares promises up to a tenth more than a loop gives, so the loop is walked.

Letters: M positions, K heads.
"""

from collections.abc import Iterable, Sequence

from torch import Tensor

from euryale.decoding.tree.tree import Tree


def replay(ranks_MK_texts: Sequence[Tensor], trees: Iterable[Tree]) -> list[float]:
    """tau of each tree: tokens over steps, the bonus token included, along every text from its first position.

    A text's tensor holds, for each position, the rank of the true next token under every head.
    """
    texts = [[tuple(vector) for vector in ranks_MK.tolist()] for ranks_MK in ranks_MK_texts]
    return [_tau(texts, set(tree.paths)) for tree in trees]


def _tau(texts: Sequence[Sequence[tuple[int, ...]]], paths: set[tuple[int, ...]]) -> float:
    num_tokens = num_steps = 0
    for vectors in texts:
        position = 0
        while position < len(vectors):
            ranks, depth = vectors[position], 0
            while depth < len(ranks) and ranks[: depth + 1] in paths:
                depth += 1
            position += depth + 1
            num_tokens += depth + 1
            num_steps += 1
    return num_tokens / num_steps
