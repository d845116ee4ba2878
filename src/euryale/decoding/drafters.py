"""Who proposes the tokens of a tree? The closed list of drafters, by the name they have everywhere."""

from euryale.decoding.draft import Drafter
from euryale.decoding.drafter_heads import HeadsDrafter
from euryale.decoding.drafter_none import NoDrafter
from euryale.decoding.tree import Tree
from euryale.errors import UserError
from euryale.model.base import Base
from euryale.model.heads import Heads

DRAFTERS = ("none", "heads")


def build_drafter(name: str, base: Base, heads: Heads | None, tree: Tree) -> Drafter:
    """Raises UserError for an unknown name, or for `heads` where no heads were loaded."""
    if name == "none":
        return NoDrafter(base)
    if name != "heads":
        raise UserError(f"drafter={name} is not known. Choose one of: {', '.join(DRAFTERS)}.")
    if heads is None:
        raise UserError("drafter=heads needs a heads checkpoint, and only a base was given. Give one, or drafter=none.")
    return HeadsDrafter(base, heads, tree)
