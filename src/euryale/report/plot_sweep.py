"""Picture of a sweep of infer/bench.py: speed, tau, acceptance by depth, where a step's time goes, memory."""

from collections.abc import Callable

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from euryale.report.format import describe_hardware
from euryale.report.plots import BLUE, GREEN, GREY, ORANGE, PARTS, finish_png, polish
from euryale.report.sweep_results import Point, Sweep, series_of

_COLORS = (BLUE, ORANGE, GREEN, "#7a5aa6", "#b04a5a", "#5b8f8a", GREY)
_MOST_NAMED = 12  # lines or bars that a legend or axis still has room for


def sweep_plot(sweep: Sweep) -> bytes:
    """Five panels as a PNG."""
    figure = Figure(figsize=(15.0, 8.4), layout="constrained")
    (speed, tau, memory), (depth, split, unused) = figure.subplots(2, 3)
    _draw_speed(speed, sweep)
    _draw_lines(tau, sweep, "tau", lambda point: point.own.get("tau"))
    tau.set_ylabel("tau (tokens per step)")
    _draw_memory(memory, sweep)
    _draw_depths(depth, sweep)
    _draw_split(split, sweep)
    unused.axis("off")
    handles, labels = speed.get_legend_handles_labels()
    unused.legend(handles, labels, loc="upper left", frameon=False, title=f"over {sweep.by}", alignment="left")
    where = describe_hardware(sweep.points[-1].row.get("hardware") or {})
    figure.suptitle(where, fontsize=11, x=0.008, ha="left", color="#555555")
    return finish_png(figure)


def _draw_speed(axes: Axes, sweep: Sweep) -> None:
    """Ours, and dashed and dotted what the same weights do otherwise."""
    _draw_lines(axes, sweep, "Speed", lambda point: point.own["tokens_per_s"])
    for name, style, label in (("ar", "--", "without drafts"), ("hf_generate", ":", "HF generate")):
        for color, (_, points) in zip(_COLORS * 9, series_of(sweep.points).items(), strict=False):
            timed = [
                (p.value, p.row["contenders"][name]["tokens_per_s"]) for p in points if name in p.row["contenders"]
            ]
            if timed and any(p.own is not p.row["contenders"].get(name) for p in points):
                axes.plot(*zip(*timed, strict=True), style, color=color, linewidth=1.2, label=label)
                label = "_" + label  # once in the legend
    axes.set_ylabel("tokens per second")
    axes.set_ylim(bottom=0)


def _draw_lines(axes: Axes, sweep: Sweep, title: str, number: Callable[[Point], float | None]) -> None:
    """A line for each series over the swept setting."""
    polish(axes)
    for color, (series, points) in zip(_COLORS * 9, series_of(sweep.points).items(), strict=False):
        known = [(point.value, number(point)) for point in points if number(point) is not None]
        if known:
            axes.plot(*zip(*known, strict=True), "o-", color=color, linewidth=1.8, label=series or "Euryale")
    axes.set_title(title, loc="left")
    axes.set_xlabel(sweep.by)


def _draw_memory(axes: Axes, sweep: Sweep) -> None:
    key = "peak_device_bytes" if any("peak_device_bytes" in p.own for p in sweep.points) else "peak_host_bytes"
    _draw_lines(axes, sweep, "Most memory", lambda point: point.own[key] / 2**20 if key in point.own else None)
    axes.set_ylabel("MiB on the GPU" if key == "peak_device_bytes" else "MiB of the process")
    axes.set_ylim(0, 1.06 * axes.get_ylim()[1])


def _draw_depths(axes: Axes, sweep: Sweep) -> None:
    """How often at least so many drafted tokens were accepted."""
    polish(axes)
    drawn = [point for point in sweep.points if point.row.get("tau_by_depth")]
    for number, point in enumerate(drawn):
        shares = [1.0, *point.row["tau_by_depth"]]
        shade = 0.25 + 0.75 * (number + 1) / len(drawn)
        label = _name(point) if len(drawn) <= _MOST_NAMED else None
        axes.plot(range(len(shares)), shares, "o-", markersize=4, color=BLUE, alpha=shade, linewidth=1.5, label=label)
    axes.set_title("Acceptance by depth", loc="left")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("drafted tokens, at least")
    axes.set_ylabel("share of steps")
    axes.set_ylim(0, 1.04)
    if drawn and len(drawn) <= _MOST_NAMED:
        axes.legend(frameon=False, fontsize=8)


def _draw_split(axes: Axes, sweep: Sweep) -> None:
    """Stacked bars, one a result."""
    polish(axes)
    drawn = [point for point in sweep.points if point.own.get("split_ms")]
    below = [0.0] * len(drawn)
    for part, color in PARTS.items():
        heights = [point.own["split_ms"].get(part, 0.0) for point in drawn]
        axes.bar(range(len(drawn)), heights, 0.7, bottom=below, color=color, label=part)
        below = [low + height for low, height in zip(below, heights, strict=True)]
    names = [_name(point) for point in drawn] if len(drawn) <= _MOST_NAMED else [""] * len(drawn)
    axes.set_xticks(range(len(drawn)), names, rotation=0 if max(map(len, names), default=0) < 6 else 30, fontsize=8)
    axes.set_title("A step's time", loc="left")
    axes.set_ylabel("ms")
    if drawn:
        axes.legend(frameon=False, fontsize=8, ncols=2)


def _name(point: Point) -> str:
    value = f"{point.value:g}" if isinstance(point.value, float) else point.value
    return f"{value} {point.series}".rstrip()
