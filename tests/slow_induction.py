"""The slow twin of induction: what followed a suffix earlier, found by reading the text. Not a test file itself."""

from collections.abc import Sequence


def follower_slowly(ids: Sequence[int], source: int, num_known: int, longest: int) -> int:
    """The place after the last s <= source whose suffix is that of source + num_known, or -1."""
    last = source + num_known
    for length in range(longest, 0, -1):
        wanted = ids[last - length + 1 : last + 1]
        if length > last + 1:
            continue
        for place in range(source, length - 2, -1):
            if ids[place - length + 1 : place + 1] == wanted:
                return place + 1
    return -1
