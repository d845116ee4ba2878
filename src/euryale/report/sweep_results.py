"""Results of a sweep of infer/bench.py: its lines, by the setting that it went over.

A line knows in `swept` what was set for its job alone. Lines of single runs do not, and are told apart by what they
measured with.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from euryale.errors import UserError
from euryale.report.format import MISSING, number, times
from euryale.report.tables import align

MEASURED_WITH = (
    "checkpoint", "prompts", "drafter", "tree", "temperature", "batch", "num_nodes", "max_depth", "max_new_tokens",
    "dtype", "threads",
)  # fmt: skip
log = logging.getLogger(__name__)


class Point(NamedTuple):
    """One line, its place on the axis and the series it belongs to."""

    value: float | str
    series: str
    row: dict[str, Any]

    @property
    def own(self) -> dict[str, Any]:
        """Our own engine's numbers; plain decoding's where only that was timed."""
        contenders = self.row["contenders"]
        return contenders.get("euryale") or contenders.get("ar") or next(iter(contenders.values()))


class Sweep(NamedTuple):
    by: str
    points: list[Point]  # by value, then series


def read_sweep(file: Path, by: str | None = None) -> Sweep:
    """The lines of a results file; of two with the same settings the later. `by` None: the first setting swept.

    Raises UserError: a missing file, lines that are not results of bench, a setting that no line has.
    """
    rows = _read_rows(file)
    swept = list(dict.fromkeys(key for row in rows for key in row.get("swept") or {}))
    varied = [key for key in MEASURED_WITH if len({str(row.get(key)) for row in rows}) > 1]
    keys = swept or varied or ["num_nodes"]
    by = keys[0] if by is None else by
    missing = [row for row in rows if _value(row, by) is None]
    if missing:
        found = ", ".join(dict.fromkeys([*swept, *(key for key in MEASURED_WITH if key in rows[0])]))
        raise UserError(f"by={by}: {len(missing)} of {len(rows)} lines of {file} do not say it. They know: {found}.")
    others = [key for key in keys if key != by and key not in (_DECIDED_BY.get(by) or ())]
    values = [str(_value(row, by)) for row in rows]
    numeric = all(_is_number(value) for value in values)
    points = {}
    for row, value in zip(rows, values, strict=True):
        series = ", ".join(f"{key}={_value(row, key)}" for key in others if _value(row, key) is not None)
        points[value, series] = Point(float(value) if numeric else value, series, row)
    if len(points) < len(rows):
        log.warning(
            "%s: %d lines repeat the settings of others; the last of each counts", file, len(rows) - len(points)
        )
    order = list(points.values())
    return Sweep(by, sorted(order, key=lambda p: (p.value, p.series)) if numeric else order)


def sweep_table(sweep: Sweep) -> str:
    """A line for each result."""
    rows = []
    for point in sweep.points:
        own, memory = point.own, point.own.get("peak_device_bytes", point.own.get("peak_host_bytes"))
        value = f"{point.value:g}" if isinstance(point.value, float) else point.value
        rows.append(
            [
                f"{value}  {point.series}".rstrip(),
                number(own["tokens_per_s"], 1),
                times(point.row.get("speedup_vs_ar")),
                times(point.row.get("speedup_vs_hf")),
                number(own.get("tau")),
                number(own.get("ms_per_step")),
                MISSING if memory is None else f"{memory / 2**20:,.0f}",
            ]
        )
    return align([sweep.by, "tokens/s", "over AR", "over HF", "tau", "ms/step", "peak MiB"], rows)


# What follows from a setting is not a setting of its own.
_DECIDED_BY = {"temperature": ("num_nodes", "max_depth"), "drafter": ("num_nodes", "max_depth"),
               "checkpoint": ("num_nodes", "max_depth"), "tree": ("num_nodes", "max_depth"),
               "num_nodes": ("max_depth",)}  # fmt: skip


def _value(row: dict[str, Any], key: str) -> object:
    return (row.get("swept") or {}).get(key, row.get(key))


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def _read_rows(file: Path) -> list[dict[str, Any]]:
    try:
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        rows = [json.loads(line) for line in lines]
    except (OSError, ValueError) as error:
        raise UserError(
            f"results={file} cannot be read: {error}. It is the file that infer/bench.py output=FILE.jsonl adds to."
        ) from error
    wrong = [number for number, row in enumerate(rows, start=1) if not isinstance(row, dict) or not _is_result(row)]
    if wrong or not rows:
        where = f"line {wrong[0]} is not a result of infer/bench.py" if wrong else "it is empty"
        raise UserError(f"results={file}: {where}. Give the file that infer/bench.py output=FILE.jsonl adds to.")
    return rows


def _is_result(row: dict[str, Any]) -> bool:
    contenders = row.get("contenders")
    return isinstance(contenders, dict) and bool(contenders) and all(isinstance(c, dict) for c in contenders.values())


def series_of(points: Sequence[Point]) -> dict[str, list[Point]]:
    """The points of each series."""
    found: dict[str, list[Point]] = {}
    for point in points:
        found.setdefault(point.series, []).append(point)
    return found
