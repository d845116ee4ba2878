"""Picture of a tree: the root to the left, a column per depth, a box per node with its rank and its probability.

A node's rank is its place among its siblings, that is, which guess of the head it is; its probability is the measured
share of positions at which the base's own continuation passes through it.
"""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from euryale.report.plots import finish_png

Path = tuple[int, ...]

COLUMN, ROW = 1.55, 0.27  # inches from one depth or leaf to the next
BOX_WIDTH, BOX_HEIGHT = 0.86, 0.205  # inches
SHADE = LinearSegmentedColormap.from_list("probability", ["#eef4f9", "#7fb2d6", "#1f4e79"])


def tree_plot(paths: Sequence[Sequence[int]], probabilities: Sequence[float], title: str = "") -> bytes:
    """PNG of the tree that holds the root and one node per path (ranks from the root down; prefixes included).

    Drawn at the size its leaves need, so that labels stay legible from one node to some hundred.
    """
    probability: dict[Path, float] = {(): 1.0}
    for path, share in zip(paths, probabilities, strict=True):
        probability[tuple(path)] = share
    for node in list(probability):
        assert not node or node[:-1] in probability, f"path {node} has no parent in the tree"
    rows = _place_rows(sorted(probability))
    num_rows = int(max(rows.values())) + 1
    depth = max(len(node) for node in probability)

    width = max(6.0, (depth + 1) * COLUMN + 0.4)
    height = max(1.6, num_rows * ROW + 1.15)
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.axis("off")
    axes.text(0.2, 0.28, title or _title(len(probability)), fontsize=12, fontweight="bold", va="center")
    legend = "in a box: rank among siblings, probability of the path"
    axes.text(0.2, 0.52, legend, fontsize=8, color="#666666", va="center")

    for column in range(depth + 1):
        name = "root" if column == 0 else f"depth {column} (head {column - 1})"
        axes.text(_x(column), 0.78, name, fontsize=8.5, color="#444444", ha="center", va="center")
    for node, share in probability.items():
        here = (_x(len(node)), _y(rows[node]))
        if node:
            _draw_edge(axes, (_x(len(node) - 1), _y(rows[node[:-1]])), here, share)
        label = f"{node[-1]}   {_probability(share)}" if node else "known"
        _draw_box(axes, here, share, label)
    return finish_png(figure)


def _x(column: int) -> float:
    """Inches from the left to the middle of a box."""
    return 0.2 + BOX_WIDTH / 2 + column * COLUMN


def _y(row: float) -> float:
    """Inches from the top to the middle of a box."""
    return 1.05 + row * ROW


def _draw_edge(axes: Axes, parent: tuple[float, float], child: tuple[float, float], share: float) -> None:
    start, end = parent[0] + BOX_WIDTH / 2, child[0] - BOX_WIDTH / 2
    bend = (start + end) / 2
    xs, ys = [start, bend, bend, end], [parent[1], parent[1], child[1], child[1]]
    axes.plot(xs, ys, color="#9aa7b4", linewidth=0.6 + 2.4 * share, zorder=1, solid_joinstyle="round")


def _draw_box(axes: Axes, middle: tuple[float, float], share: float, label: str) -> None:
    x, y = middle
    corner, style = (x - BOX_WIDTH / 2, y - BOX_HEIGHT / 2), "round,pad=0,rounding_size=0.05"
    colors = {"facecolor": SHADE(share**0.5), "edgecolor": "#5b7a95"}
    axes.add_patch(FancyBboxPatch(corner, BOX_WIDTH, BOX_HEIGHT, boxstyle=style, linewidth=0.7, zorder=2, **colors))
    ink = "white" if share > 0.35 else "#1b2733"
    axes.text(x, y, label, fontsize=8, ha="center", va="center_baseline", zorder=3, color=ink)


def _place_rows(nodes: Sequence[Path]) -> dict[Path, float]:
    """Leaves take one row each, in order of rank; a parent sits level with its first child."""
    children: dict[Path, list[Path]] = {}
    for node in nodes:
        if node:
            children.setdefault(node[:-1], []).append(node)
    rows: dict[Path, float] = {}
    free = 0

    def place(node: Path) -> float:
        nonlocal free
        below = [place(child) for child in children.get(node, ())]
        if not below:
            below = [float(free)]
            free += 1
        rows[node] = below[0]
        return rows[node]

    place(())
    return rows


def _title(num_nodes: int) -> str:
    return "Tree of 1 node: no drafts" if num_nodes == 1 else f"Tree of {num_nodes} nodes"


def _probability(share: float) -> str:
    return f"{share:.2f}" if share >= 0.095 else f"{share:.3f}"
