"""Where the keys of a tree's node are split, for every backend of tree attention.

A node at position p = length + depth sees the keys at positions 0 to p. They are split by p ALONE, so that a node of a
tree does the same sums, in the same order, as the same token does when it is decoded alone (N = 1); the two are then
equal bit for bit.

    prefix  positions 0 to c - 1, c = (p - REACH) rounded down to TILE: committed slots whatever the tree is, because no
            path is deeper than REACH. Whole tiles, in splits of fixed size that run side by side.
    tail    positions c to p, at most REACH + TILE keys, gathered for each node in the order of their positions: first
            the rest of the prefix, then the path, read off the ancestor mask.
"""

REACH = 32  # the depth of the deepest node
TILE = 32
MOST_NODES = 64  # the bits of an ancestor mask
MOST_GROUP = 16  # query heads of a key/value head: the rows of one tensor-core instruction


def split_size(num_slots: int) -> int:
    """Slots of a split: 64, and for long caches as many as leave at most 32 splits.

    Equality between AR and a tree needs the same size in both, hence caches of the same bucket.
    """
    size = 64
    while size * 32 < num_slots:
        size *= 2
    return size
