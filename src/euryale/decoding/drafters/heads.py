"""Drafts of the trained heads.

Head k guesses the tokens at depth k + 1, once a parent (kind hydra, which reads the path) or once a depth (kind
medusa). Candidates are ranked with the noise that the verifier will draw with.

Letters: B batch, P parents of a level, C numbers of a path.
"""

from copy import copy

from torch import Tensor

from euryale.base.base import Base
from euryale.decoding.drafters.best import top_k_of
from euryale.decoding.drafters.compiled_heads import CompiledHeads, HostTexts
from euryale.decoding.drafters.head_matrices import HeadMatrices
from euryale.decoding.drafters.interface import Draft, Drafter, DraftInput
from euryale.decoding.drafters.ngram_index import (
    HostNgramIndex,
    NgramIndex,
    TextSearch,
    build_ngram_index,
    extend_ends,
)
from euryale.decoding.drafters.tree_growth import Levels, build_growth
from euryale.decoding.tree.calibration import Calibration
from euryale.decoding.tree.tree import DynamicTree, Tree
from euryale.heads.heads import Heads


class HeadsDrafter(Drafter):
    """The heads on a fixed tree, or on the one that looks best in each step."""

    is_on_device = True

    def __init__(
        self,
        base: Base,
        heads: Heads,
        tree: Tree | DynamicTree,
        calibration: Calibration | None = None,
        matrices: HeadMatrices | None = None,
    ) -> None:
        """matrices: of these heads, to be shared; None: its own."""
        per_parent = heads.config.reads_path
        self._growth = build_growth(tree, heads.num_candidates, base.device, per_parent, calibration, top_k_of(base))
        self.num_nodes, self.max_depth = self._growth.num_nodes, self._growth.max_depth
        self._matrices = matrices or HeadMatrices(base, heads)
        self._matrices.prepare(self.max_depth)
        self._compiled = CompiledHeads.of(self._matrices, self._growth)
        self.layers = heads.layers_read(base.num_layers) if self.max_depth else ()
        self.searches_text = bool(self._matrices.induction and self.max_depth)
        self._index: NgramIndex | HostNgramIndex | None = None  # where heads read what followed earlier
        self._texts = HostTexts()  # the same for compiled drafting

    def begin(self, num_rows: int, num_slots: int) -> "HeadsDrafter":
        if not self.searches_text:
            return self  # nothing is remembered of a row
        begun = copy(self)
        begun._index = build_ngram_index(self._matrices.induction, num_rows, num_slots, self._matrices.base.device)
        begun._texts = HostTexts()
        return begun

    def add(self, row: int) -> None:
        if self._index is not None:
            self._index.add(row)
            self._texts.add(row)

    def swap_remove(self, row: int) -> None:
        if self._index is not None:
            self._index.swap_remove(row)
            self._texts.swap_remove(row)

    def propose(self, draft_input: DraftInput) -> Draft:
        if self._compiled is not None and self._compiled.takes(draft_input):
            return self._compiled.propose(draft_input, self._texts)
        return self._growth.grow(draft_input, self._levels(draft_input), self._matrices.draft_ids)

    def _levels(self, draft_input: DraftInput) -> Levels:
        matrices = self._matrices
        entry = matrices.enter(draft_input, self.max_depth)
        path_BPC: Tensor | None = None
        search, ends_BP = self._search(draft_input)
        found_BP: Tensor | None = None
        for k in range(self.max_depth):
            if search is not None and ends_BP is not None and (k == 0 or matrices.reads_path):
                found_BP = search.followers(ends_BP)
            slots, tokens_BP = yield matrices.logits(k, entry, path_BPC, found_BP)
            path_BPC = matrices.extend(path_BPC, slots, tokens_BP)
            if ends_BP is not None and matrices.reads_path:
                ends_BP = extend_ends(ends_BP, slots, tokens_BP)

    def _search(self, draft_input: DraftInput) -> tuple[TextSearch | NgramIndex | HostNgramIndex | None, Tensor | None]:
        """What finds followers in this step, and the ends of the texts; None where the heads read no followers."""
        if not self.searches_text:
            return None, None
        if draft_input.text is not None:
            search = TextSearch(draft_input.text, self._matrices.induction)
            return search, search.ends()
        assert self._index is not None, "begin has made it"
        return self._index, self._index.read(draft_input.texts)
