"""Pareto plot: tau and tokens/s over the number of head parameters, the frontier drawn."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from euryale.report.plots import BLUE, GREY, ORANGE, finish_png, polish

AXES = {
    "tau": ("tau", "tau (tokens per step)"),
    "tau_16": ("tau of 16 nodes", "tau of 16 nodes (tokens per step)"),
    "tokens_per_s": ("tokens/s", "tokens per second, this machine"),
}


def pareto_plot(points: list[dict[str, Any]], tau: str = "tau") -> bytes:
    """Points are {label, num_parameters, tau or tau_16 as `tau` says, tokens_per_s}; two panels as a PNG."""
    figure = Figure(figsize=(12.0, 4.6), layout="constrained")
    for axes, key in zip(figure.subplots(1, 2), (tau, "tokens_per_s"), strict=True):
        name, label = AXES[key]
        _draw(axes, points, key)
        axes.set_ylabel(label)
        axes.set_xlabel("parameters of the heads (millions)")
        axes.set_title(f"{name}: on the line, nothing smaller is better", loc="left")
    return finish_png(figure)


def frontier(points: list[dict[str, Any]], key: str) -> list[int]:
    """Indices of the points that no other beats in size and `key` at once, by size."""
    order = sorted(range(len(points)), key=lambda i: (points[i]["num_parameters"], -points[i][key]))
    best, kept = float("-inf"), []
    for index in order:
        if points[index][key] > best:
            best = points[index][key]
            kept.append(index)
    return kept


def _draw(axes: Axes, points: list[dict[str, Any]], key: str) -> None:
    polish(axes)
    on_line = frontier(points, key)
    sizes = [point["num_parameters"] / 1e6 for point in points]
    axes.plot([sizes[i] for i in on_line], [points[i][key] for i in on_line], "-", color=ORANGE, linewidth=1.6)
    for index, point in enumerate(points):
        axes.plot(sizes[index], point[key], "o", color=BLUE if index in on_line else GREY, markersize=7)
        axes.annotate(
            point["label"], (sizes[index], point[key]), (7, 4), textcoords="offset points", fontsize=8, color="#333333"
        )
    axes.margins(x=0.25, y=0.15)
