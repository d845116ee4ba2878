"""What infer/list_kernels.py and infer/bench_kernels.py show: tables."""

from collections.abc import Sequence
from typing import Any

from euryale.report.tables import align


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
