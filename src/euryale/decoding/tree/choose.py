"""The tree that an engine verifies: named, made from calibration, or only a number of nodes.

    chain       the first candidate of every depth
    medusa63    Medusa's published tree
    calibrated  what was fastest when the checkpoint was calibrated: the paths that were most often right, or dynamic
    dynamic     a number of nodes; every step takes those that look likeliest in that moment

Where nothing was calibrated, `calibrated` is `chain`; for drafters without heads, `dynamic` (Engine.tree_name).
"""

from collections.abc import Sequence

from euryale.decoding.config import MOST_NODES, TreeConfig
from euryale.decoding.tree.calibration import Calibration, nearest
from euryale.decoding.tree.tree import ROOT_ONLY, DynamicTree, Tree, chain, check_depth, medusa63
from euryale.errors import UserError
from euryale.heads.heads import Heads

DEFAULT_NODES = 16  # of a dynamic tree that nothing was calibrated for


def plan_tree(
    asked: Tree | TreeConfig,
    heads: Heads | None,
    depth: int,
    calibrations: Sequence[Calibration],
    temperature: float,
) -> Tree | DynamicTree:
    """The tree of a drafter that reads these heads (None: of one that reaches `depth` tokens ahead).

    Raises UserError: a tree deeper than the heads, more nodes than were calibrated.
    """
    most = asked.max_depth if isinstance(asked, TreeConfig) else None
    reach = depth if heads is None else heads.num_heads
    if most is not None and most > reach:
        what = "drafter.depth" if heads is None else "the number of heads"
        raise UserError(f"tree.max_depth must be at most {reach}, {what}; got {most}.")
    if heads is None:
        return _without_heads(asked, most or depth)
    num_heads = most or heads.num_heads  # as many are asked
    if isinstance(asked, Tree):
        name, tree = "given", asked
    elif asked.name == "dynamic":
        usual = nearest(calibrations, temperature).num_nodes if calibrations else DEFAULT_NODES
        limit = nearest(calibrations, temperature).max_depth if calibrations and not asked.num_nodes else None
        return DynamicTree(asked.num_nodes or usual, min(limit or num_heads, num_heads))
    elif asked.name == "calibrated" and calibrations:
        calibration = nearest(calibrations, temperature)
        _check_num_nodes(asked.num_nodes, len(calibration.paths) + 1)
        if asked.num_nodes is None and most is None:
            chosen = calibration.chosen()
            if isinstance(chosen, DynamicTree):
                return DynamicTree(chosen.num_nodes, min(chosen.max_depth, num_heads))
            tree = chosen
        else:
            tree = calibration.tree_of(asked.num_nodes or calibration.num_nodes, most)
        name = asked.name
    elif asked.name == "medusa63":
        name, tree = asked.name, medusa63()
    else:
        _check_num_nodes(asked.num_nodes, 0)
        name, tree = asked.name, chain(num_heads)
    if most is None:  # a tree is cut as asked, never silently
        check_depth(tree, name, heads.num_heads)
    return tree.pruned(num_heads, heads.num_candidates)


def plan_sizes(
    asked: TreeConfig, heads: Heads, calibrations: Sequence[Calibration], temperature: float
) -> dict[int, Tree | DynamicTree]:
    """Trees of every size whose steps were timed, at most `num_nodes` large, by number of nodes.

    Dynamic ones, where so many nodes were counted, if they are asked for or calibration found them faster. Raises
    UserError when too few were timed to choose among.
    """
    sizes: dict[int, Tree | DynamicTree] = {1: ROOT_ONLY}
    calibration = nearest(calibrations, temperature) if calibrations else None
    for n in sorted(int(n) for n in calibration.step_ms) if calibration is not None else []:
        if calibration is not None and str(n) in calibration.tau and 1 < n <= (asked.num_nodes or MOST_NODES):
            depth = asked.max_depth or calibration.fastest_depth(n)
            planned = plan_tree(TreeConfig(asked.name, n, depth), heads, heads.num_heads, [calibration], temperature)
            if asked.name == "dynamic" or calibration.dynamic_depth is not None:
                planned = calibration.fastest_dynamic(n, asked.max_depth or heads.num_heads) or planned
            if planned.num_nodes == n:
                sizes[n] = planned
    if len(sizes) < 2 or calibration is None or not {"1"} <= calibration.step_ms.keys() & calibration.tau.keys():
        raise UserError(
            f"tree.size=adaptive chooses among trees whose steps were timed, and {len(sizes) - 1} were here. "
            "Calibrate with infer/calibrate.py, or use tree.size=fixed."
        )
    return sizes


def _without_heads(asked: Tree | TreeConfig, depth: int) -> Tree | DynamicTree:
    if isinstance(asked, Tree):
        return asked
    if asked.name == "chain":
        return chain(depth)
    if asked.name == "medusa63":
        return medusa63() if asked.max_depth is None else medusa63().pruned(asked.max_depth, MOST_NODES)
    num_nodes = asked.num_nodes or DEFAULT_NODES
    return DynamicTree(num_nodes, depth) if num_nodes > 1 else ROOT_ONLY


def _check_num_nodes(asked: int | None, most: int) -> None:
    if asked is not None and asked > most:
        if not most:
            raise UserError(f"tree.num_nodes needs a calibrated tree; got {asked} without one. Use tree=dynamic.")
        raise UserError(
            f"tree.num_nodes must be from 1 to {most}, as trees were calibrated; got {asked}. Or use tree=dynamic."
        )
