"""Picture of infer/load.py: speed and waiting times over the load."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from euryale.report.plots import BLUE, ORANGE, finish_png, polish


def load_plot(result: dict[str, Any]) -> bytes:
    """Tokens a second and time to the first token over the load, a line for each server; a PNG."""
    figure = Figure(figsize=(10.0, 4.2), layout="constrained")
    speed, wait = figure.subplots(1, 2)
    urls = list(dict.fromkeys(level["url"] for level in result["levels"]))
    for url, color in zip(urls, (BLUE, ORANGE), strict=False):
        levels = [level for level in result["levels"] if level["url"] == url]
        _draw(speed, levels, [level["tokens_per_s"] for level in levels], url, color)
        _draw(wait, levels, [(level["ttft_s"] or {}).get("p50") for level in levels], url, color)
    speed.set_title("Tokens per second, all requests", loc="left")
    wait.set_title("Seconds to the first token, median", loc="left")
    for axes in (speed, wait):
        axes.set_ylim(bottom=0)
        axes.set_xlabel("requests a second" if result["levels"][0]["rate"] is not None else "clients at once")
    speed.legend(frameon=False, fontsize=8)
    return finish_png(figure)


def _draw(axes: Axes, levels: list[dict[str, Any]], values: list[float | None], url: str, color: str) -> None:
    polish(axes)
    known = [(_x(level), value) for level, value in zip(levels, values, strict=True) if value is not None]
    if known:
        axes.plot(*zip(*known, strict=True), "o-", color=color, linewidth=1.8, label=url)


def _x(level: dict[str, Any]) -> float:
    return float(level["rate"] if level["rate"] is not None else level["clients"])
