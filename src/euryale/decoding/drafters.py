"""Who proposes the tokens of a tree? The closed list of drafters, by the name they have everywhere."""

from collections.abc import Callable
from dataclasses import dataclass

from euryale.decoding.calibrated import Calibration
from euryale.decoding.draft import Drafter
from euryale.decoding.drafter_heads import HeadsDrafter
from euryale.decoding.drafter_lookup import LookupDrafter
from euryale.decoding.drafter_none import NoDrafter
from euryale.decoding.tree import Budget, Tree
from euryale.errors import UserError
from euryale.model.base import Base
from euryale.model.heads import Heads


@dataclass
class DrafterConfig:
    """Who proposes."""

    name: str = "heads"
    depth: int = 8

    def check(self) -> None:
        """Raises UserError for a name or number that cannot be."""
        if self.name not in DRAFTERS:
            raise UserError(f"drafter={self.name} is not known. Choose one of: {', '.join(DRAFTERS)}.")
        if not 1 <= self.depth <= 64:
            raise UserError(f"drafter.depth={self.depth} cannot be. Give a number of tokens from 1 to 64 (8 is usual).")

    @property
    def needs_heads(self) -> bool:
        return self.name in ("heads",)


class Parts:
    """What drafters are made of."""

    def __init__(self, base: Base, heads: Heads | None, tree: Tree | Budget, calibration: Calibration | None) -> None:
        self.base = base
        self.tree = tree
        self.calibration = calibration
        self._heads = heads

    @property
    def heads(self) -> Heads:
        assert self._heads is not None, "build_drafter has checked that"
        return self._heads


_BUILDERS: dict[str, Callable[[DrafterConfig, Parts], Drafter]] = {
    "none": lambda config, parts: NoDrafter(parts.base),
    "heads": lambda config, parts: HeadsDrafter(parts.base, parts.heads, parts.tree, parts.calibration),
    "lookup": lambda config, parts: LookupDrafter(parts.base, parts.tree),
}
DRAFTERS = tuple(_BUILDERS)


def build_drafter(
    config: DrafterConfig | str,
    base: Base,
    heads: Heads | None,
    tree: Tree | Budget,
    calibration: Calibration | None = None,
) -> Drafter:
    """`calibration` tells a tree that grows best first how often the heads are right.

    Raises UserError for an unknown name, or for a drafter that needs heads where none were loaded."""
    if isinstance(config, str):
        config = DrafterConfig(config)
    config.check()
    check_heads(config, heads)
    return _BUILDERS[config.name](config, Parts(base, heads, tree, calibration))


def check_heads(config: DrafterConfig, heads: Heads | None) -> None:
    """Raises UserError when this drafter needs heads and there are none."""
    if config.needs_heads and heads is None:
        raise UserError(
            f"drafter={config.name} needs a heads checkpoint, and only a base was given. Give one, or drafter=none."
        )
