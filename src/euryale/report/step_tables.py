"""What infer/bench_steps.py shows: the roofline of a base's sizes, and times of steps in several ways."""

from typing import Any

from euryale.report.tables import align


def roofline_card(result: dict[str, Any]) -> str:
    """What a step must read and compute at the speeds measured here; evaluation.bench_steps gives the result."""
    copy = result["copy_gb_per_s"]
    lines = [f"a copy moves {copy:,.1f} GB/s here"]
    for kind, found in result["roofline"].items():
        flops = found["flops_per_s"]
        nodes_alike = found["ms"] / 1e3 * flops / (2 * found["weights"])
        lines.append(
            f"{kind}: a step reads {found['bytes'] / 1e9:,.3f} GB of weights, {found['ms']:.3f} ms at that speed, at "
            f"most {1e3 / found['ms']:,.0f} tokens/s without drafts; at {flops / 1e12:,.2f} TFLOP/s "
            f"{nodes_alike:,.0f} nodes are computed meanwhile"
        )
    return "\n".join(lines)


def steps_table(result: dict[str, Any]) -> str:
    """Milliseconds a step by way and number of nodes, the last over the least of them, and the share of a copy's speed
    that one node reaches."""
    ways = {name: found for name, found in result["ways"].items() if "failed" not in found}
    nodes = list(next(iter(ways.values()))["ms"]) if ways else []
    rows = [
        [
            name,
            *(f"{found['ms'][num]:.3f}" for num in nodes),
            f"{found['of_one'][nodes[-1]]:.2f}",
            f"{100 * found['share_of_copy']:.0f}%" if "share_of_copy" in found else "",
            f"{found['peak_bytes'] / 1e9:.1f} GB",
        ]
        for name, found in ways.items()
    ]
    header = ["ms a step", *(f"n = {num}" for num in nodes), "last / least", "of a copy's speed", "peak memory"]
    lines = [align(header, rows)] if rows else []
    generate = {f"transformers' generate, {name}": found for name, found in result["generate"].items()}
    lines += [f"{name}: {found['ms']:.3f} ms a token" for name, found in generate.items() if "ms" in found]
    failed = (result["ways"] | generate).items()
    lines += [f"{name} was not measured: {found['failed']}" for name, found in failed if "failed" in found]
    return "\n".join(lines)
