"""The trees that calibration found best on this machine.

`tree.json` alongside the heads holds, for one or more temperatures, paths ordered so that the best n-node tree is the
root and the first n - 1 of them (of those that are not too deep), the n and depth that were fastest here, and whether
nodes that every step arranges anew are faster still, and how many.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from euryale.decoding.tree.tree import ROOT_ONLY, DynamicTree, Tree
from euryale.errors import UserError
from euryale.system.paths import argument

TREE_FILE = "tree.json"
INT4_TREE_FILE = "tree.int4.json"  # of the same heads where the base is in 4 bits (base.quantization=int4)
TREE_FORMAT = 1


@dataclass(frozen=True)
class Calibration:
    """What was counted and timed at one temperature."""

    temperature: float
    num_nodes: int  # chosen, with max_depth: most tokens a millisecond
    paths: list[list[int]]  # most frequent first; every prefix of the list is a tree
    probabilities: list[float]  # share of positions whose true next tokens have these ranks
    num_positions: int
    tau: dict[str, float] = field(default_factory=dict)  # tokens a step along the counted text, by number of nodes
    step_ms: dict[str, float] = field(default_factory=dict)  # median time of a step by number of nodes
    repeated_8grams: float = 0.0  # share of the counted text that repeats itself: it flatters tau
    max_depth: int | None = None  # chosen: every level is one more round of drafting; None: as deep as the heads
    shallow: list[dict[str, float]] = field(default_factory=list)  # num_nodes, max_depth, tau, step_ms of other trees
    finalists: list[dict[str, Any]] = field(default_factory=list)  # timed once more: as shallow, and error_ms
    # Not None: every step arranges nodes anew, at most this deep (evaluation/time_arrangements.py).
    dynamic_depth: int | None = None
    dynamic_nodes: int | None = None  # how many; None, as in older files: as many as the chosen tree has
    dynamic_speedup: float | None = None  # how much faster that was than the chosen tree; None: not timed
    dynamic_tau: float | None = None  # tokens a step along texts that neither was fitted to
    fixed_tau: float | None = None
    dynamic: list[dict[str, Any]] = field(default_factory=list)  # num_nodes, max_depth, tau, step_ms of such trees

    def tree(self) -> Tree:
        """The chosen size, as the paths that were most often right."""
        return self.tree_of(self.num_nodes, self.max_depth)

    def chosen(self) -> Tree | DynamicTree:
        """The tree that was fastest here: that one, or a number of nodes arranged anew in every step."""
        tree = self.tree()
        num_nodes = self.dynamic_nodes or tree.num_nodes
        return DynamicTree(num_nodes, self.dynamic_depth) if self.dynamic_depth and num_nodes > 1 else tree

    def tree_of(self, num_nodes: int, max_depth: int | None = None) -> Tree:
        """The best tree of at most this many nodes, the root included, and of at most this depth."""
        paths = [path for path, _ in self.likeliest(num_nodes, max_depth)]
        return Tree.from_paths(paths) if paths else ROOT_ONLY

    def fastest_depth(self, num_nodes: int) -> int | None:
        """How deep a tree of so many nodes writes the most tokens a millisecond, of the depths that were timed."""
        timed = [None, *(int(entry["max_depth"]) for entry in self.shallow if entry["num_nodes"] == num_nodes)]
        speeds = {depth: self.promise(num_nodes, depth) for depth in timed}
        return max(speeds, key=lambda depth: speeds[depth][0] / speeds[depth][1])

    def fastest_dynamic(self, num_nodes: int, max_depth: int) -> DynamicTree | None:
        """The dynamic tree of so many nodes, and at most so deep, that writes the most tokens a millisecond.

        None where none was counted.
        """
        fit = [e for e in self.dynamic if e["num_nodes"] == num_nodes and e["max_depth"] <= max_depth]
        best = max(fit, key=lambda entry: entry["tau"] / entry["step_ms"], default=None)
        return None if best is None else DynamicTree(best["num_nodes"], best["max_depth"])

    def promise_of(self, tree: Tree | DynamicTree) -> tuple[float, float]:
        """As `promise`; a dynamic tree that was not counted promises what a fixed one of its size does."""
        for entry in self.dynamic if isinstance(tree, DynamicTree) else []:
            if (entry["num_nodes"], entry["max_depth"]) == (tree.num_nodes, tree.max_depth):
                return entry["tau"], entry["step_ms"]
        return self.promise(tree.num_nodes, tree.max_depth)

    def promise(self, num_nodes: int, max_depth: int | None = None) -> tuple[float, float]:
        """Tokens a step, and milliseconds of one, that were counted and timed for this tree.

        Those of full depth where a tree of another was not timed.
        """
        for entry in self.shallow:
            if (entry["num_nodes"], entry["max_depth"]) == (num_nodes, max_depth):
                return entry["tau"], entry["step_ms"]
        return self.tau[str(num_nodes)], self.step_ms[str(num_nodes)]

    def likeliest(self, num_nodes: int, max_depth: int | None = None) -> list[tuple[list[int], float]]:
        """The nodes of that tree but the root, each with the share of positions at which its path is right."""
        nodes = zip(self.paths, self.probabilities, strict=True)
        return [node for node in nodes if max_depth is None or len(node[0]) <= max_depth][: num_nodes - 1]


def tree_name(quantization: str) -> str:
    """The file that calibration writes for a base in this quantisation: a step costs something else in 4 bits."""
    return INT4_TREE_FILE if quantization == "int4" else TREE_FILE


def find_tree(folder: Path, quantization: str) -> Path:
    """The file that decoding reads: that of the quantisation, or the other where there is only that."""
    own = folder / tree_name(quantization)
    others = [folder / name for name in (TREE_FILE, INT4_TREE_FILE) if (folder / name).is_file()]
    return own if own.is_file() or not others else others[0]


def read_calibrations(folder: Path, quantization: str = "none") -> list[Calibration]:
    """Raises UserError when there is no such file, or one that cannot be read."""
    file = find_tree(folder, quantization)
    if not file.is_file():
        raise UserError(
            f"tree=calibrated: {folder} has no {TREE_FILE}. Make one with "
            f"`python infer/calibrate.py {argument('checkpoint', folder)}`, or use tree=chain or tree=medusa63."
        )
    try:
        content = json.loads(file.read_text())
        version = content["format_version"]
        if version != TREE_FORMAT:
            raise ValueError(f"it has format {version}; this version reads {TREE_FORMAT}")
        found = [Calibration(**entry) for entry in content["calibrations"]]
        for calibration in found:
            check_calibration(calibration)
    except (KeyError, TypeError, ValueError, RecursionError) as error:  # broken JSON, or paths that are not a tree
        raise UserError(f"{file} cannot be read ({error!r:.200}). Make it again with infer/calibrate.py.") from error
    if not found:
        raise UserError(f"{file} holds no calibration. Make it again with infer/calibrate.py.")
    return found


def check_calibration(calibration: Calibration) -> None:
    """Raises ValueError, or UserError for paths that are no tree, for what no calibration writes.

    Decoding divides by these numbers, and orders trees by the chances: of more than 1 a child would stand before its
    parent.
    """
    facts: dict[str, bool] = {
        "temperature": _is_number(calibration.temperature, 0.0),
        "paths": all(_is_path(path) for path in _listed(calibration.paths)),
        "probabilities": len(_listed(calibration.probabilities)) == len(calibration.paths)
        and all(_is_number(chance, 0.0, 1.0) for chance in calibration.probabilities),
        "num_nodes": _is_count(calibration.num_nodes) and calibration.num_nodes <= len(calibration.paths) + 1,
        "tau": _are_by_nodes(calibration.tau),
        "step_ms": _are_by_nodes(calibration.step_ms),
        "max_depth": _is_depth(calibration.max_depth),
        "shallow": all(_is_timed(entry) for entry in _listed(calibration.shallow)),
        "dynamic": all(_is_timed(entry) for entry in _listed(calibration.dynamic)),
        "dynamic_depth": _is_depth(calibration.dynamic_depth),
        "dynamic_nodes": calibration.dynamic_nodes is None or _is_count(calibration.dynamic_nodes),
    }
    for name, is_right in facts.items():
        if not is_right:
            raise ValueError(f"{name}={getattr(calibration, name)!r:.80}")
    calibration.tree_of(len(calibration.paths) + 1)


def _listed(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"a list is expected; got {value!r:.80}")
    return value


def _is_number(value: object, least: float, most: float = math.inf) -> bool:
    return type(value) in (int, float) and least <= float(value) <= most and math.isfinite(float(value))  # type: ignore[arg-type]


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 1


def _is_depth(value: object) -> bool:
    return value is None or _is_count(value)


def _is_path(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(rank) is int and rank >= 0 for rank in value)


def _is_positive(value: object) -> bool:
    return _is_number(value, 0.0) and value != 0


def _are_by_nodes(value: object) -> bool:
    """Numbers above 0 by number of nodes, which JSON has as texts."""
    return isinstance(value, dict) and all(
        name.isdecimal() and int(name) >= 1 and _is_positive(number) for name, number in value.items()
    )


def _is_timed(entry: object) -> bool:
    return (
        isinstance(entry, dict)
        and all(_is_count(entry.get(name)) for name in ("num_nodes", "max_depth"))
        and all(_is_positive(entry.get(name)) for name in ("tau", "step_ms"))
    )


def nearest(calibrations: Sequence[Calibration], temperature: float) -> Calibration:
    """The one made nearest to this temperature."""
    return min(calibrations, key=lambda c: abs(c.temperature - temperature))
