"""Autoregressive decoding: the tree is the root."""

from euryale.base.base import Base
from euryale.decoding.drafters.interface import Draft, Drafter, DraftInput
from euryale.decoding.tree.tree import ROOT_ONLY, Shape


class NoDrafter(Drafter):
    """One node, one token a step: the baseline that every other drafter must equal in text."""

    num_nodes = 1
    max_depth = 0
    is_on_device = True

    def __init__(self, base: Base) -> None:
        self._shape = Shape.of_tree(ROOT_ONLY, base.device)

    def propose(self, draft_input: DraftInput) -> Draft:
        return Draft(draft_input.root_B[:, None], self._shape)
