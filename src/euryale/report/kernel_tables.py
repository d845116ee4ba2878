"""What infer/list_kernels.py and infer/bench_kernels.py show: tables, and times over nodes as a picture."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from euryale.report.format import describe_hardware
from euryale.report.plots import BLUE, GREEN, GREY, ORANGE, finish_png, polish
from euryale.report.tables import align

_COLORS = {"triton": BLUE, "cuda": GREEN, "torch": ORANGE}


def standing_table(rows: Sequence[tuple[str, str, str, str]]) -> str:
    """(kernel, backend, state, reason) -> a table; a kernel is named once."""
    lines: list[list[str]] = []
    width = max(len(row[3]) for row in rows)
    last = ""
    for kernel, backend, state, reason in rows:
        lines.append(["" if kernel == last else kernel, backend, state, reason.ljust(width)])
        last = kernel
    return align(["kernel", "backend", "here", "why".ljust(width)], lines)


def kernel_bench_table(rows: Sequence[dict[str, Any]], copy_gb_per_s: float) -> str:
    """Rows of evaluation.bench_kernels; times, bandwidth as a share of a copy's, and the difference in results."""
    lines = [
        [
            row["kernel"],
            row["backend"],
            str(row["num_nodes"]),
            f"{row['us']:,.1f}",
            f"{row['bytes'] / copy_gb_per_s / 1e3:,.1f}",
            f"{100 * row['gb_per_s'] / copy_gb_per_s:.1f}%",
            f"{row['difference']:.0e}",
        ]
        for row in rows
    ]
    header = ["kernel", "backend", "nodes", "us", "least us", "of a copy's speed", "differs by"]
    return f"{align(header, lines)}\n\na copy moves {copy_gb_per_s:,.1f} GB/s here; least us: the bytes at that speed"


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
