"""The drafter and the tree of a step, by temperature and number of rows.

Everything a user can ask for that does not go together is refused here, when the engine is made. All drafters of the
heads read one set of matrices; of the drafters the latest few are kept.
"""

import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from euryale.base.base import Base
from euryale.decoding.config import AcceptConfig, DrafterConfig, TreeConfig
from euryale.decoding.drafters.build import (
    Matrices,
    build_adaptive,
    build_drafter,
    build_matrices,
    check_heads,
    settle_draft_base,
)
from euryale.decoding.drafters.interface import Drafter
from euryale.decoding.tree.calibration import Calibration, nearest
from euryale.decoding.tree.choose import plan_sizes, plan_tree
from euryale.decoding.tree.tree import ROOT_ONLY, DynamicTree, Tree
from euryale.errors import UserError
from euryale.heads.heads import Heads

log = logging.getLogger(__name__)
_MOST_KEPT = 8  # drafters; another tree, temperature or number of rows needs another


class _Key(NamedTuple):
    """What decides how a drafter drafts."""

    tree: Tree | DynamicTree
    calibrated_at: float | None  # temperature
    most_nodes: int | None


class SharedMatrices:
    """The heads' matrices for drafting, laid out when a drafter first needs them, once for all drafters."""

    def __init__(self, base: Base, heads: Heads | None) -> None:
        self._base, self._heads = base, heads
        self._matrices: Matrices | None = None

    def get(self) -> Matrices | None:
        """None without heads."""
        if self._matrices is None and self._heads is not None:
            self._matrices = build_matrices(self._base, self._heads)
        return self._matrices


class DrafterPool:
    """The drafters of an engine, made when they are first needed."""

    def __init__(
        self,
        base: Base,
        heads: Heads | None,
        config: DrafterConfig,
        asked: Tree | TreeConfig,
        calibrations: Sequence[Calibration],
        draft_base: Base | None,
        accept: AcceptConfig,
    ) -> None:
        """Raises UserError for unknown names and for settings that exclude each other."""
        config.check()
        check_heads(config, heads)
        self.draft_base = settle_draft_base(config, base, draft_base)
        self._base, self._heads, self._config = base, heads if config.needs_heads else None, config
        self._asked, self._calibrations, self._accept = asked, calibrations, accept
        self.matrices = SharedMatrices(base, self._heads)
        self._drafters: OrderedDict[_Key, Drafter] = OrderedDict()  # the latest used last
        if isinstance(asked, TreeConfig):
            asked.check()
        spare = config.spare if config.name == "heads+lookup" else 0
        for temperature in [c.temperature for c in calibrations] or [0.0]:
            for tree in (self.tree(temperature), *self._sizes(temperature).values()):
                num_nodes, max_depth = tree.num_nodes + spare, tree.max_depth + spare
                base.forward_settings.check_tree(base.device, num_nodes, max_depth)

    def __getstate__(self) -> dict[str, object]:
        """What copy.deepcopy and pickle take: a copy makes drafters of its own, for these may hold addresses."""
        made = {"matrices": SharedMatrices(self._base, self._heads), "_drafters": OrderedDict()}
        return self.__dict__ | made

    def tell_tree(self) -> None:
        """Logs that another tree is used than the calibrated one that was asked for."""
        if isinstance(self._asked, TreeConfig) and self._asked.name != self.tree_name:
            log.info(
                "tree=%s is used: nothing was calibrated for drafter=%s, so there is no calibrated tree",
                *(self.tree_name, self._config.name),
            )

    @property
    def tree_name(self) -> str:
        """The kind of tree that steps verify, as in TREES; `given` for a tree that came without a name.

        Not always the one that was asked for: `calibrated` is another where nothing was calibrated.
        """
        if not isinstance(self._asked, TreeConfig):
            return "given"
        if self._asked.name != "calibrated" or self._config.name == "none":
            return self._asked.name
        if self._heads is None:
            return "dynamic"
        return "calibrated" if self._calibrations else "chain"

    def tree(self, temperature: float, most_nodes: int | None = None) -> Tree | DynamicTree:
        """The tree of a step at this temperature, or the number of nodes that it arranges anew."""
        if self._config.name == "none":
            return ROOT_ONLY
        if self._config.name == "lookahead":
            return self._lookahead_size(most_nodes)
        asked = self._asked
        tree = self._planned(asked, temperature)
        if most_nodes is not None and tree.num_nodes > most_nodes:
            is_of_calibration = self.tree_name == "calibrated"
            if isinstance(asked, TreeConfig) and (isinstance(tree, DynamicTree) or is_of_calibration):
                tree = self._planned(replace(asked, num_nodes=most_nodes), temperature)  # the best of so many
            elif isinstance(tree, Tree):
                tree = tree.first(most_nodes)
        return self._fit(tree)

    def drafter(self, temperature: float, most_nodes: int | None = None) -> Drafter:
        """What fills that tree."""
        calibration = nearest(self._calibrations, temperature) if self._calibrations else None
        calibrated_at = None if calibration is None else calibration.temperature
        key = _Key(self.tree(temperature, most_nodes), calibrated_at, most_nodes)
        if key not in self._drafters:
            self._drafters[key] = self._build(key, temperature, calibration)
        self._drafters.move_to_end(key)
        while len(self._drafters) > _MOST_KEPT:
            self._drafters.popitem(last=False)
        return self._drafters[key]

    def _planned(self, asked: Tree | TreeConfig, temperature: float) -> Tree | DynamicTree:
        return plan_tree(asked, self._heads, self._config.depth, self._calibrations, temperature)

    def _build(self, key: _Key, temperature: float, calibration: Calibration | None) -> Drafter:
        matrices = self.matrices.get() if key.tree.num_nodes > 1 else None
        sizes = self._sizes(temperature)
        if sizes and self._heads is not None and calibration is not None:
            most = None if key.most_nodes is None else max(key.most_nodes, min(sizes))
            sizes = {n: tree for n, tree in sizes.items() if most is None or n <= most}
            return build_adaptive(self._base, self._heads, sizes, calibration, matrices)
        return build_drafter(self._config, self._base, self._heads, key.tree, calibration, self.draft_base, matrices)

    def _lookahead_size(self, most_nodes: int | None) -> DynamicTree:
        """Lookahead arranges its own nodes: a tree can only say how many. Raises UserError for one that says more."""
        asked, own = self._asked, self._config.num_nodes
        if isinstance(asked, Tree) or asked.name in ("chain", "medusa63") or asked.max_depth is not None:
            raise UserError(
                "drafter=lookahead makes its own tree, of drafter.window, drafter.ngram and drafter.candidates. "
                "Of a tree it takes tree.num_nodes alone, with tree=dynamic or tree=calibrated."
            )
        return DynamicTree(min(own, asked.num_nodes or own, most_nodes or own), own - 1)

    def _fit(self, tree: Tree | DynamicTree) -> Tree | DynamicTree:
        """Draws without replacement come one after another: where they are what is tried, none can be left out."""
        return tree.without_gaps() if self._accept.name == "rejection" and isinstance(tree, Tree) else tree

    def _sizes(self, temperature: float) -> dict[int, Tree | DynamicTree]:
        """The trees that an adaptive one chooses among; none where its size is fixed."""
        asked = self._asked
        if not isinstance(asked, TreeConfig) or asked.size == "fixed" or self._config.name == "none":
            return {}
        if self._config.name not in ("heads", "eagle") or self._heads is None:
            raise UserError(
                f"tree.size=adaptive is for drafter=heads, whose steps were timed, not for {self._config.name}. "
                "Use tree.size=fixed."
            )
        if self._heads.config.kind == "eagle":
            raise UserError(
                "tree.size=adaptive asks now one drafter, now another, and heads of kind eagle follow the text in "
                "every step. Use tree.size=fixed."
            )
        sizes = plan_sizes(asked, self._heads, self._calibrations, temperature)
        return {n: self._fit(tree) for n, tree in sizes.items()}
