"""Table and picture of infer/load.py: speed and waiting times over the load."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from euryale.report.format import MISSING, number
from euryale.report.plots import BLUE, ORANGE, finish_png, polish
from euryale.report.tables import align


def load_table(result: dict[str, Any]) -> str:
    """A row for each level of load and server."""
    rows = []
    for level in result["levels"]:
        errors = ", ".join(f"{count} {name}" for name, count in level["errors"].items())
        rows.append(
            [
                level["url"],
                _load(level),
                f"{level['answered']}/{level['requests']}",
                number(level["tokens_per_s"], 1),
                _ms(level["ttft_s"], "p50"),
                _ms(level["ttft_s"], "p95"),
                _ms(level["per_token_s"], "p50"),
                number(level["tau"]),
                errors or MISSING,
            ]
        )
    header = ["server", "load", "answered", "tokens/s", "TTFT ms", "p95", "ms/token", "tau", "errors"]
    table = align(header, rows)
    same = result.get("same_text")
    if same is not None:
        table += f"\n\n{same['equal']} of {same['compared']} answers are the same text on both servers"
    return table


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


def _load(level: dict[str, Any]) -> str:
    return f"{level['clients']} clients" if level["rate"] is None else f"{level['rate']:g}/s"


def _ms(spread: dict[str, float] | None, key: str) -> str:
    return MISSING if spread is None else number(spread[key] * 1000, 1)
