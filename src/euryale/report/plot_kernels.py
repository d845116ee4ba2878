"""Picture of infer/bench_kernels.py: times over nodes, a panel for each kernel."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from euryale.report.format import describe_hardware
from euryale.report.plots import BLUE, GREEN, GREY, ORANGE, finish_png, polish

_COLORS = {"triton": BLUE, "cuda": GREEN, "torch": ORANGE}


def kernel_plot(rows: Sequence[dict[str, Any]], copy_gb_per_s: float, hardware: dict[str, Any]) -> bytes:
    """A panel for each kernel: microseconds over nodes for every backend, and the least time, as a PNG."""
    kernels = list(dict.fromkeys(row["kernel"] for row in rows))
    figure = Figure(figsize=(13.0, 2.9 * -(-len(kernels) // 3)), layout="constrained")
    panels = figure.subplots(-(-len(kernels) // 3), 3, squeeze=False).flat
    for kernel, axes in zip(kernels, panels, strict=False):
        polish(axes)
        own = [row for row in rows if row["kernel"] == kernel]
        for backend, color in _COLORS.items():
            points = [(row["num_nodes"], row["us"]) for row in own if row["backend"] == backend]
            if points:
                axes.plot(*zip(*points, strict=True), "o-", color=color, linewidth=1.8, label=backend)
        least = sorted({(row["num_nodes"], row["bytes"] / copy_gb_per_s / 1e3) for row in own})
        # A call that need not move anything has no place on a logarithmic axis.
        at_least = [(num_nodes, us or float("nan")) for num_nodes, us in least]
        axes.plot(*zip(*at_least, strict=True), "--", color=GREY, linewidth=1.2, label="bytes at a copy's speed")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_title(kernel, loc="left")
        axes.set_xlabel("nodes")
        axes.set_ylabel("us")
        axes.set_yscale("log")
    for axes in list(panels):
        axes.axis("off")
    figure.axes[0].legend(frameon=False, fontsize=8)
    figure.suptitle(describe_hardware(hardware), fontsize=11, x=0.008, ha="left", color="#555555")
    return finish_png(figure)
