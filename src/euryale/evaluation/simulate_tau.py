"""Simulated tau: the tokens that steps over a known text would have gained with a given tree.

The share of positions at which a path is right is not the share of steps: a step that gains much passes over the easy
positions it has accepted, and the next one begins where a guess was wrong. On text of changing difficulty the sum of
the shares promises up to a tenth more than a loop gives, so the loop is walked.

Letters: M positions, K heads.
"""

from collections.abc import Iterable, Sequence

from torch import Tensor

from euryale.decoding.tree.tree import Path, Tree


def replay(ranks_MK_texts: Sequence[Tensor], trees: Iterable[Tree]) -> list[float]:
    """tau of each tree: tokens over steps, the bonus token included, along every text from its first position.

    A text's tensor holds, for each position, the rank of the true next token under every head.
    """
    return [walked([reached(ranks_MK, tree) for ranks_MK in ranks_MK_texts]) for tree in trees]


def reached(ranks_MK: Tensor, tree: Tree) -> list[int]:
    """How many of the next tokens a step from each position of a text accepts with this tree."""
    paths = set(tree.paths)
    return [_depth(tuple(vector), paths) for vector in ranks_MK.tolist()]


def walked(reached_texts: Iterable[Sequence[int]]) -> float:
    """tau of a loop over texts in which a step from each position accepts so many tokens."""
    num_tokens = num_steps = 0
    for accepted in reached_texts:
        position = 0
        while position < len(accepted):
            num_tokens += accepted[position] + 1
            num_steps += 1
            position += accepted[position] + 1
    return num_tokens / num_steps


def _depth(ranks: Path, paths: set[Path]) -> int:
    depth = 0
    while depth < len(ranks) and ranks[: depth + 1] in paths:
        depth += 1
    return depth
