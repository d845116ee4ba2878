"""What does autoregressive decoding draft? Nothing: the tree is the root."""

from euryale.base.base import Base
from euryale.decoding.drafters.interface import Draft, Known, TextReader
from euryale.decoding.tree.tree import ROOT_ONLY, Shape


class NoDrafter:
    """One node, one token a step: the baseline that every other drafter must equal in text."""

    num_nodes = 1
    max_depth = 0
    layers: tuple[int, ...] = ()
    reader: TextReader | None = None

    def __init__(self, base: Base) -> None:
        self._shape = Shape.of_tree(ROOT_ONLY, base.device)

    def begin(self, num_rows: int, num_slots: int) -> "NoDrafter":
        return self

    def admit(self, row: int) -> None:
        """Nothing is remembered of a row."""

    def retire(self, row: int) -> None:
        """Nothing is remembered of a row."""

    def propose(self, known: Known) -> Draft:
        return Draft(known.root_B[:, None], self._shape)
