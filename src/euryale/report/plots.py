"""Plots of accuracy, calibration and speed: one PNG each, as bytes, drawn without a display.

Figures are built without pyplot, which keeps global state and picks a window system. Every function takes sections of
a report (`report.py`) that its caller has found there.
"""

import io
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter, ScalarFormatter

from euryale.report.format import chosen_tree, contender, describe_tree, speedups, times, top_ranks

BLUE, ORANGE, GREY, GREEN = "#1f6f9f", "#d9722b", "#8a8f98", "#4a9a5f"
SHADES = ("#1f4e79", "#4a90c2", "#a5cbe6", "#d3e5f2", "#8a8f98", "#c4c8ce")  # top-1 darkest
PARTS = {"draft": ORANGE, "verify": BLUE, "accept": GREEN, "commit": GREY}


def accuracy_plot(accuracy: Sequence[dict[str, Any]]) -> bytes:
    """Bars of top-k accuracy, grouped by head."""
    ranks = top_ranks(list(accuracy))
    figure, axes = _figure(max(6.0, 1.0 + 0.5 * len(accuracy) * (len(ranks) + 1)), 4.0)
    width = 0.84 / max(1, len(ranks))
    for column, rank in enumerate(ranks):
        shift = (column - (len(ranks) - 1) / 2) * width
        shares = [row.get(f"top{rank}") or 0.0 for row in accuracy]
        bars = axes.bar(
            [head + shift for head in range(len(accuracy))],
            shares,
            0.94 * width,
            color=SHADES[column % len(SHADES)],
            label=f"top-{rank}",
        )
        axes.bar_label(bars, [f"{100 * share:.0f}" for share in shares], padding=2, fontsize=8, color="#333333")
    axes.set_xticks(range(len(accuracy)), [f"head {row['head']}\n{row['head'] + 2} tokens ahead" for row in accuracy])
    axes.set_ylim(0, 1.08)
    axes.yaxis.set_major_locator(FixedLocator([0, 0.2, 0.4, 0.6, 0.8, 1.0]))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylabel("positions (%) with the base's\nown token among the guesses")
    axes.legend(loc="upper right", ncols=len(ranks), frameon=False, bbox_to_anchor=(1.0, 1.13), borderpad=0)
    axes.set_title("Head accuracy", loc="left")
    return finish_png(figure)


def calibration_plot(tree: dict[str, Any]) -> bytes:
    """tau, step time and speed over the number of nodes, one line per temperature, and a ring at the chosen tree.

    The lines are trees as deep as the heads; a chosen tree that is less deep has its ring off its line.
    """
    figure = Figure(figsize=(12.0, 4.0), layout="constrained")
    panels = figure.subplots(1, 3)
    counts: set[int] = set()
    for entry, color in zip(tree["calibrations"], (BLUE, ORANGE, GREEN, GREY) * 8, strict=False):
        tau = {int(nodes): value for nodes, value in (entry.get("tau") or {}).items()}
        step_ms = {int(nodes): value for nodes, value in (entry.get("step_ms") or {}).items()}
        timed = sorted(tau.keys() & step_ms.keys())
        speed = {n: tau[n] / step_ms[n] / (tau[timed[0]] / step_ms[timed[0]]) for n in timed}
        counts |= tau.keys() | step_ms.keys()
        chosen = chosen_tree(entry)
        for axes, curve, key in zip(panels, (tau, step_ms, speed), ("tau", "step_ms", "speedup"), strict=True):
            _draw_curve(axes, curve, chosen, key, f"T = {entry.get('temperature', 0.0):g}", color)
    titles = ("Tokens per step", "Cost of a step", "Speed over one node")
    for axes, title, label in zip(panels, titles, ("tau (tokens)", "time (ms)", "ratio"), strict=True):
        _finish_panel(axes, title, label, counts)
    panels[2].axhline(1.0, color=GREY, linewidth=1.0, linestyle=":", zorder=0)
    place = ", ".join(str(tree[key]) for key in ("device", "dtype") if tree.get(key))
    threads = f", {tree['threads']} threads" if tree.get("threads") else ""
    if place:
        figure.suptitle(f"Calibration on {place}{threads}", fontsize=11, x=0.008, ha="left", color="#555555")
    return finish_png(figure)


def _finish_panel(axes: Axes, title: str, label: str, counts: set[int]) -> None:
    polish(axes)
    axes.set_title(title, loc="left")
    axes.set_xlabel("nodes in the tree")
    axes.set_ylabel(label)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator([n for n in sorted(counts) if n.bit_count() == 1] or sorted(counts)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.set_ylim(0.0, 1.06 * axes.get_ylim()[1])
    legend = axes.legend(loc="lower right", title="ring: the chosen tree", alignment="left", framealpha=1.0)
    legend.get_frame().set_edgecolor("white")


def bench_plot(bench: dict[str, Any]) -> bytes:
    """Tokens per second of every contender, and below them where the time of Euryale's step goes."""
    contenders: dict[str, dict[str, Any]] = bench["contenders"]
    names = [name for name in contenders if contenders[name].get("tokens_per_s") is not None]
    speeds = [contenders[name]["tokens_per_s"] for name in names]
    split = contenders.get("euryale", {}).get("split_ms") or {}
    figure = Figure(figsize=(8.0, 1.5 + 0.45 * len(names) + (1.4 if split else 0.0)), layout="constrained")
    if split:
        upper, lower = figure.subplots(2, 1, height_ratios=[max(2.0, len(names)), 1.3])
        _draw_split(lower, split)
    else:
        upper = figure.subplots()
    polish(upper, grid="x")
    rows = range(len(names))
    upper.barh(rows, speeds, 0.66, color=[BLUE if name == "euryale" else GREY for name in names])
    own = bench["contenders"].get("ar", {}).get("tokens_per_s")
    for row, name, speed in zip(rows, names, speeds, strict=True):
        low, high = (bench.get("spread") or {}).get(name) or (speed, speed)
        if high > low:
            upper.plot([low, high], [row, row], color="#222222", linewidth=1.4, marker="|", markersize=7)
        ratio = f"  ({times(speed / own)} AR)" if own and name != "ar" else ""
        upper.annotate(f"{speed:,.1f}{ratio}", (max(speed, high), row), (6, 0), textcoords="offset points", va="center")
    upper.set_yticks(rows, [contender(name, bench) for name in names])
    upper.invert_yaxis()
    upper.set_xlim(0, 1.36 * max(speeds, default=1.0))
    upper.set_xlabel("tokens per second" + (" (line: lowest to highest round)" if bench.get("spread") else ""))
    conditions = [f"{bench['num_nodes']} nodes"] if bench.get("num_nodes") else []
    conditions += [f"temperature {bench['temperature']:g}"] if bench.get("temperature") is not None else []
    conditions += [f"{bench['num_prompts']} prompts"] if bench.get("num_prompts") else []
    vs_ar, _ = speedups(bench)
    claim = "Decoding speed" if vs_ar is None else f"Decoding speed: {times(vs_ar)} the same engine without drafts"
    upper.set_title(claim + (f"\n{', '.join(conditions)}" if conditions else ""), loc="left")
    return finish_png(figure)


def _draw_split(axes: Axes, split_ms: dict[str, float]) -> None:
    """One bar, cut into draft, verify, accept and commit; narrow pieces are named in the legend only."""
    polish(axes, grid=None)
    whole = sum(split_ms.values())
    left = 0.0
    for part, ms in split_ms.items():
        axes.barh(0, ms, 0.6, left=left, color=PARTS.get(part, GREY), label=f"{part} {ms:.2f} ms")
        if ms > 0.08 * whole:
            axes.text(left + ms / 2, 0, f"{100 * ms / whole:.0f}%", ha="center", va="center", color="white")
        left += ms
    axes.set_xlim(0, max(whole, 1e-9))
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("time of Euryale's step (ms)")
    axes.legend(ncols=len(split_ms), frameon=False, loc="lower center", bbox_to_anchor=(0.5, 0.95), fontsize=9)


def _draw_curve(axes: Axes, curve: dict[int, float], chosen: dict[str, Any], key: str, name: str, color: str) -> None:
    """One temperature's line, a ring at the chosen tree's own number, and that number in the legend."""
    nodes, value = sorted(curve), chosen.get(key)
    label = name if value is None else f"{name}: {value:.2f} with {describe_tree(chosen)}"
    axes.plot(nodes, [curve[n] for n in nodes], "o-", color=color, linewidth=1.8, markersize=5, label=label)
    if value is not None:
        size = chosen["num_nodes"]
        axes.plot([size], [value], "o", markersize=12, fillstyle="none", color=color, markeredgewidth=1.6)
        axes.axvline(size, color=color, linewidth=1.0, linestyle="--", alpha=0.5, zorder=0)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    polish(axes)
    return figure, axes


def polish(axes: Axes, grid: str | None = "y") -> None:
    """The look of all our axes."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    if grid:
        axes.grid(axis=grid, color="#e4e6ea", linewidth=0.8)  # type: ignore[arg-type]


def finish_png(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG."""
    FigureCanvasAgg(figure)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=130, facecolor="white")
    return out.getvalue()
