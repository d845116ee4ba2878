"""Share of a text that repeats itself. An undertrained model loops under greedy decoding, and a loop is easy to draft.

tau and speed measured on looping text flatter every drafter, so both are reported together with this share.
"""

from collections.abc import Iterable, Sequence

LOOPING_SHARE = 0.20  # above this share of repeated 8-grams a measurement carries a warning


def repeated_ngram_share(ids_lists: Iterable[Sequence[int]], n: int = 8) -> float:
    """Share (0..1) of positions at which an n-gram starts that already occurred earlier in the same text.

    A text of L tokens has L - n + 1 such positions, none when it is shorter than n; without any position the share
    is 0. Positions of all texts count alike, texts are not compared with one another.
    """
    assert n >= 1, n
    num_positions = 0
    num_repeated = 0
    for ids in ids_lists:
        seen: set[tuple[int, ...]] = set()
        for start in range(len(ids) - n + 1):
            ngram = tuple(ids[start : start + n])
            num_repeated += ngram in seen
            seen.add(ngram)
            num_positions += 1
    return num_repeated / num_positions if num_positions else 0.0
