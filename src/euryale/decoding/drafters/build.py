"""The closed list of drafters, by the name they have everywhere.

none           no drafts: autoregressive decoding
heads          the trained heads, of whatever kind
eagle          the trained heads, which have to be of kind eagle
lookup         what followed the same tokens earlier in prompt and answer
lookahead      the base itself: Jacobi iteration within the step, and the n-grams it finds
heads+lookup   the heads, and a copied chain in nodes of its own
model          a smaller model with the same tokenizer
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from euryale.base.base import Base
from euryale.decoding.config import DrafterConfig
from euryale.decoding.drafters.adaptive import AdaptiveDrafter
from euryale.decoding.drafters.eagle import EagleDrafter, EagleMatrices
from euryale.decoding.drafters.head_matrices import HeadMatrices
from euryale.decoding.drafters.heads import HeadsDrafter
from euryale.decoding.drafters.heads_lookup import HeadsLookupDrafter
from euryale.decoding.drafters.interface import Drafter
from euryale.decoding.drafters.lookahead import LookaheadDrafter
from euryale.decoding.drafters.lookup import LookupDrafter
from euryale.decoding.drafters.model import ModelDrafter, check_same_tokens, load_draft_base
from euryale.decoding.drafters.none import NoDrafter
from euryale.decoding.tree.calibration import Calibration
from euryale.decoding.tree.tree import DynamicTree, Tree
from euryale.errors import UserError
from euryale.heads.heads import Heads

Matrices = HeadMatrices | EagleMatrices


def build_matrices(base: Base, heads: Heads) -> Matrices:
    """What all drafters of these heads share, whatever their trees: the heads' matrices, laid out for drafting."""
    return EagleMatrices(base, heads) if heads.config.kind == "eagle" else HeadMatrices(base, heads)


class Ingredients(NamedTuple):
    """What drafters are made of; each takes what it needs."""

    base: Base
    heads: Heads | None
    tree: Tree | DynamicTree
    calibration: Calibration | None  # how often the heads are right, for a dynamic tree
    draft_base: Base | None
    matrices: Matrices | None


def _heads(config: DrafterConfig, given: Ingredients) -> Drafter:
    assert given.heads is not None, "check_heads has seen them"
    if given.tree.num_nodes == 1:
        return NoDrafter(given.base)
    matrices = given.matrices or build_matrices(given.base, given.heads)
    if isinstance(matrices, EagleMatrices):
        return EagleDrafter(given.base, given.heads, given.tree, given.calibration, matrices)
    return HeadsDrafter(given.base, given.heads, given.tree, given.calibration, matrices)


def _model(config: DrafterConfig, given: Ingredients) -> ModelDrafter:
    assert given.draft_base is not None, "settle_draft_base has loaded it"
    return ModelDrafter(given.base, given.draft_base, given.tree)


def _lookahead(config: DrafterConfig, given: Ingredients) -> LookaheadDrafter:
    return LookaheadDrafter(given.base, config.window, config.ngram, config.candidates, given.tree.num_nodes)


_BUILDERS: dict[str, Callable[[DrafterConfig, Ingredients], Drafter]] = {
    "none": lambda config, given: NoDrafter(given.base),
    "heads": _heads,
    "lookup": lambda config, given: LookupDrafter(given.base, given.tree),
    "lookahead": _lookahead,
    "heads+lookup": lambda config, given: HeadsLookupDrafter(given.base, _heads(config, given), config.spare),
    "eagle": _heads,
    "model": _model,
}


def build_drafter(
    config: DrafterConfig | str,
    base: Base,
    heads: Heads | None,
    tree: Tree | DynamicTree,
    calibration: Calibration | None = None,
    draft_base: Base | None = None,
    matrices: Matrices | None = None,
) -> Drafter:
    """matrices: of these heads (build_matrices), to be shared by several drafters; None: its own.

    Raises UserError for an unknown name, or for a drafter that needs heads or a model where there are none.
    """
    if isinstance(config, str):
        config = DrafterConfig(config)
    config.check()
    check_heads(config, heads)
    draft_base = settle_draft_base(config, base, draft_base)
    return _BUILDERS[config.name](config, Ingredients(base, heads, tree, calibration, draft_base, matrices))


def build_adaptive(
    base: Base,
    heads: Heads,
    sizes: Mapping[int, Tree | DynamicTree],
    calibration: Calibration,
    matrices: Matrices | None = None,
) -> AdaptiveDrafter:
    """The heads on trees of several sizes, by number of nodes, over the same matrices."""
    matrices = matrices or build_matrices(base, heads)
    drafters = {n: build_drafter("heads", base, heads, tree, calibration, None, matrices) for n, tree in sizes.items()}
    promised = {n: calibration.promise_of(tree) for n, tree in sizes.items()}
    return AdaptiveDrafter(
        drafters, {n: tau for n, (tau, _) in promised.items()}, {n: ms for n, (_, ms) in promised.items()}
    )


def check_heads(config: DrafterConfig, heads: Heads | None) -> None:
    """Raises UserError when this drafter needs heads and there are none, or heads of another kind."""
    if config.needs_heads and heads is None:
        raise UserError(
            f"drafter={config.name} needs a heads checkpoint, and only a base was given. Give one, or drafter=none."
        )
    if config.name == "eagle" and heads is not None and heads.config.kind != "eagle":
        raise UserError(
            f"drafter=eagle asks a layer of kind eagle, and these heads are of kind {heads.config.kind}. Use "
            "drafter=heads, which takes what the checkpoint holds, or train one with train/run.py heads=eagle."
        )


def settle_draft_base(config: DrafterConfig, base: Base, draft_base: Base | None) -> Base | None:
    """The smaller model of drafter=model: the one given, else loaded. Raises UserError when it does not fit."""
    if config.name != "model":
        return None
    if draft_base is None:
        return load_draft_base(config.path, base)
    check_same_tokens(draft_base, base)
    return draft_base
