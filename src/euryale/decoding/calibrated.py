"""Which tree did calibration find best on this machine?

`tree.json` beside the heads holds, for one or more temperatures, paths ordered so that the best n-node tree is the
root and the first n - 1 of them, and the n that was fastest here.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from euryale.decoding.tree import ROOT_ONLY, Tree
from euryale.errors import UserError

TREE_FILE = "tree.json"
TREE_FORMAT = 1


@dataclass(frozen=True)
class Calibration:
    """What was counted and timed at one temperature."""

    temperature: float
    num_nodes: int  # chosen: argmax of tau(n) / step_ms(n)
    paths: list[list[int]]  # most frequent first; every prefix of the list is a tree
    probabilities: list[float]  # share of positions whose true next tokens have these ranks
    num_positions: int
    tau: dict[str, float] = field(default_factory=dict)  # expected tokens a step by number of nodes
    step_ms: dict[str, float] = field(default_factory=dict)  # median time of a step by number of nodes
    repeated_8grams: float = 0.0  # share of the counted text that repeats itself: it flatters tau

    def tree(self, num_nodes: int | None = None) -> Tree:
        """The best tree of this many nodes (default: the chosen number), the root included."""
        paths = self.paths[: (num_nodes or self.num_nodes) - 1]
        return Tree.from_paths(paths) if paths else ROOT_ONLY


def read_calibrations(folder: Path) -> list[Calibration]:
    """Raises UserError when there is no tree.json, or one that cannot be read."""
    file = folder / TREE_FILE
    if not file.is_file():
        raise UserError(
            f"tree=calibrated: {folder} has no {TREE_FILE}. Make one with "
            f"`python infer/calibrate.py checkpoint={folder}`, or use tree=chain or tree=medusa63."
        )
    try:
        content = json.loads(file.read_text())
        version = content["format_version"]
        if version != TREE_FORMAT:
            raise ValueError(f"it has format {version}; this version reads {TREE_FORMAT}")
        found = [Calibration(**entry) for entry in content["calibrations"]]
        for calibration in found:
            if not 1 <= calibration.num_nodes <= len(calibration.paths) + 1:
                raise ValueError(f"num_nodes={calibration.num_nodes} with {len(calibration.paths)} paths")
            calibration.tree()
    except (KeyError, TypeError, ValueError) as error:  # broken JSON, or paths that are no tree
        raise UserError(f"{file} cannot be read ({error!r}). Make it again with infer/calibrate.py.") from error
    if not found:
        raise UserError(f"{file} holds no calibration. Make it again with infer/calibrate.py.")
    return found


def nearest(calibrations: Sequence[Calibration], temperature: float) -> Calibration:
    """The one made nearest to this temperature."""
    return min(calibrations, key=lambda c: abs(c.temperature - temperature))
