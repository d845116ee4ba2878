"""Which drafter, on which tree, does a batch get at its temperature?

Everything a user can ask for that does not go together is refused here, when the engine is made.
"""

from collections.abc import Sequence
from dataclasses import replace

from euryale.base.base import Base
from euryale.decoding.accept import AcceptConfig
from euryale.decoding.drafters.build import DrafterConfig, build_adaptive, build_drafter, check_heads, settle_draft_base
from euryale.decoding.drafters.interface import Drafter
from euryale.decoding.tree.calibration import Calibration, nearest
from euryale.decoding.tree.choose import TreeConfig, plan_sizes, plan_tree
from euryale.decoding.tree.tree import ROOT_ONLY, Budget, Tree
from euryale.errors import UserError
from euryale.heads.heads import Heads


class Plan:
    """The drafters of an engine, made when they are first needed and kept."""

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
        """Raises UserError for what is not known or does not go together."""
        config.check()
        check_heads(config, heads)
        if isinstance(asked, TreeConfig):
            asked.check()
        self.draft_base = settle_draft_base(config, base, draft_base)
        self._base, self._heads, self._config = base, heads, config
        self._asked, self._calibrations, self._accept = asked, calibrations, accept
        self._drafters: dict[tuple[Tree | Budget, float | None, int | None], Drafter] = {}
        for temperature in [c.temperature for c in calibrations] or [0.0]:
            self.tree(temperature)
            self._sizes(temperature)

    def tree(self, temperature: float, most: int | None = None) -> Tree | Budget:
        """The tree of a step at this temperature, or the number of nodes that it arranges anew; at most `most`."""
        if self._config.name == "none":
            return ROOT_ONLY
        if self._config.name == "lookahead":
            return self._lookahead_size(most)
        heads = self._heads if self._config.needs_heads else None
        how = (heads, self._config.depth, self._calibrations, temperature)
        tree = plan_tree(self._asked, *how)
        if most is not None and tree.num_nodes > most:
            asked = self._asked if isinstance(self._asked, TreeConfig) else None
            is_calibrated = asked is not None and asked.name == "calibrated" and heads is not None
            if asked is not None and (isinstance(tree, Budget) or (is_calibrated and self._calibrations)):
                tree = plan_tree(replace(asked, num_nodes=most), *how)  # the best of so many
            elif isinstance(tree, Tree):
                tree = tree.first(most)
        return self._fit(tree)

    def _lookahead_size(self, most: int | None) -> Budget:
        """Lookahead arranges its own nodes: a tree can only say how many. Raises UserError for one that says more."""
        asked, own = self._asked, self._config.num_nodes
        if isinstance(asked, Tree) or asked.name in ("chain", "medusa63") or asked.max_depth is not None:
            raise UserError(
                "drafter=lookahead makes its own tree, of drafter.window, drafter.ngram and drafter.candidates. "
                "Of a tree it takes tree.num_nodes alone, with tree=dynamic or tree=calibrated."
            )
        return Budget(min(own, asked.num_nodes or own, most or own), own - 1)

    def _fit(self, tree: Tree | Budget) -> Tree | Budget:
        """Draws without replacement come one after another: where they are what is tried, none can be left out."""
        return tree.without_gaps() if self._accept.name == "rejection" and isinstance(tree, Tree) else tree

    def drafter(self, temperature: float, most: int | None = None) -> Drafter:
        """What fills that tree."""
        calibration = nearest(self._calibrations, temperature) if self._calibrations else None
        key = (self.tree(temperature, most), None if calibration is None else calibration.temperature, most)
        if key not in self._drafters:
            if sizes := self._sizes(temperature):
                sizes = {n: tree for n, tree in sizes.items() if most is None or n <= max(most, min(sizes))}
                assert calibration is not None, "sizes come from one"
                self._drafters[key] = build_adaptive(self._base, self._heads, sizes, calibration)
            else:
                self._drafters[key] = build_drafter(
                    self._config, self._base, self._heads, key[0], calibration, self.draft_base
                )
        return self._drafters[key]

    def _sizes(self, temperature: float) -> dict[int, Tree | Budget]:
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
