"""What do the trained heads propose?

Head k guesses the tokens at depth k + 1, once a parent (kind hydra, which reads the path) or once a depth (kind
medusa). Candidates are ranked with the noise that the verifier will draw with.

Letters: B batch, K heads, D width, F inner width, V vocabulary, P parents of a level, C numbers of a path.
"""

from copy import copy

import torch
from torch import Tensor

from euryale.base.base import Base
from euryale.decoding.drafters.head_matrices import HeadMatrices
from euryale.decoding.drafters.interface import Draft, Known, TextReader, log_q
from euryale.decoding.drafters.ngram_index import HostRecall, Recall, extend_ends, recall
from euryale.decoding.drafters.tree_growth import build_growth
from euryale.decoding.tree.calibration import Calibration
from euryale.decoding.tree.tree import Budget, Tree
from euryale.heads.heads import Heads


class HeadsDrafter:
    """The heads on a fixed tree, or on the one that looks best in each step."""

    reader: TextReader | None = None

    def __init__(
        self,
        base: Base,
        heads: Heads,
        tree: Tree | Budget,
        calibration: Calibration | None = None,
        matrices: HeadMatrices | None = None,
    ) -> None:
        """matrices: of at least as many of these heads as the tree is deep, to be shared."""
        per_parent = heads.config.reads_path
        self._growth = build_growth(tree, heads.num_candidates, base.device, per_parent, calibration)
        self.num_nodes, self.max_depth = self._growth.num_nodes, self._growth.max_depth
        self._heads = HeadMatrices(base, heads, self.max_depth) if matrices is None else matrices.first(self.max_depth)
        self.layers = heads.layers_read(base.num_layers) if self.max_depth else ()
        # Of the rows of a batch, where heads read what followed earlier.
        self._recall: Recall | HostRecall | None = None

    def begin(self, num_rows: int, num_slots: int) -> "HeadsDrafter":
        if not self._heads.induction or not self.max_depth:
            return self  # nothing is remembered of a row
        begun = copy(self)
        begun._recall = recall(self._heads.induction, num_rows, num_slots, self._heads.base.device)
        return begun

    def admit(self, row: int) -> None:
        if self._recall is not None:
            self._recall.admit(row)

    def retire(self, row: int) -> None:
        if self._recall is not None:
            self._recall.retire(row)

    def propose(self, known: Known) -> Draft:
        entry = self._heads.enter(known) if self.max_depth else None
        path_BPC: Tensor | None = None
        ends_BP = torch.empty(0) if self._recall is None else self._recall.read(known.ids)
        found_BP: Tensor | None = None
        drawn_from: list[Tensor] = []

        def ask(level: int, slots: Tensor | None, tokens_BP: Tensor | None) -> Tensor:
            nonlocal path_BPC, ends_BP, found_BP
            assert entry is not None
            if slots is not None and tokens_BP is not None:
                path_BPC = self._heads.extend(path_BPC, slots, tokens_BP)
                if self._recall is not None and self._heads.reads_path:
                    ends_BP = extend_ends(ends_BP, slots, tokens_BP)
            if self._recall is not None and (level == 0 or self._heads.reads_path):
                found_BP = self._recall.followers(ends_BP)
            scores_BPV = self._heads.scores(level, known, entry, path_BPC, found_BP)
            if known.draws:
                drawn_from.append(log_q(scores_BPV, known, level, self._heads.draft_ids))
            return scores_BPV

        draft = self._growth.grow(known.root_B, ask, self._heads.draft_ids)
        return draft._replace(log_q_BNV=self._growth.spread(drawn_from))
