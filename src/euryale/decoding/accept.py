"""Which drafted tokens does the base agree with?

Rule `exact`: at every node the base names its own next token, the target: argmax(logits) at T = 0, else
argmax(logits / T + keyed Gumbel noise), after top-p. Walk down from the root while a child carries its parent's
target. That is lossless at any temperature: each emitted token is the one that plain decoding draws there, because
the noise belongs to (seed, position, token) and not to the tree.

Letters: B batch, N nodes, V vocabulary, P depths (root included).
"""

from typing import NamedTuple

from torch import Tensor

from euryale.decoding.draft import Shape


class Accepted(NamedTuple):
    """What a walk found."""

    is_accepted_BN: Tensor  # bool: the nodes on the accepted path, root included; ascending = from root to leaf
    targets_BN: Tensor  # the base's own next token at every node


def accept_exact(tokens_BN: Tensor, targets_BN: Tensor, shape: Shape, is_real_BN: Tensor | None = None) -> Accepted:
    """Walks down from the root, which is always accepted, while a child equals its parent's target.

    A node is accepted when every node of its path matches. Siblings carry different tokens, hence at most one node of
    a depth is accepted. Where is_real_BN is False a node carries no candidate, whatever its token id says.
    """
    if len(shape.parents_RN) == 1:
        wanted_BN = targets_BN[:, shape.parents_RN[0]]
    else:
        wanted_BN = targets_BN.gather(1, shape.parents_RN)
    is_miss_BN = tokens_BN != wanted_BN
    if is_real_BN is not None:
        is_miss_BN |= ~is_real_BN
    is_miss_BN[:, 0] = False
    return Accepted(~(shape.ancestors_RNN & is_miss_BN[:, None]).any(-1), targets_BN)
