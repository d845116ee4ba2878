"""Table of infer/load.py: speed and waiting times over the load."""

from typing import Any

from euryale.report.format import MISSING, number
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


def _load(level: dict[str, Any]) -> str:
    return f"{level['clients']} clients" if level["rate"] is None else f"{level['rate']:g}/s"


def _ms(spread: dict[str, float] | None, key: str) -> str:
    return MISSING if spread is None else number(spread[key] * 1000, 1)
