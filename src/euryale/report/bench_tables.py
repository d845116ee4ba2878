"""Tables of benchmarks: contenders, suites by task, and batches."""

from typing import Any

from euryale.report import format
from euryale.report.format import MISSING, number, percent, times
from euryale.report.tables import align, join, measured_on, pairs, ratio


def bench_table(bench: dict[str, Any]) -> str:
    """The end of infer/bench.py: every contender on the same prompts, then where Euryale's step time goes."""
    contenders: dict[str, dict[str, Any]] = bench.get("contenders") or {}
    rows = []
    for name, row in contenders.items():
        speed = row.get("tokens_per_s")
        low, high = (bench.get("spread") or {}).get(name) or (None, None)
        ratios = [ratio(speed, contenders.get(rival, {}).get("tokens_per_s")) for rival in ("ar", "hf_generate")]
        rows.append(
            [
                format.contender(name, bench),
                number(speed, 1),
                MISSING if low is None else f"{number(low, 1)}..{number(high, 1)}",
                *map(times, ratios),
                number(row.get("tau")),
                number(row.get("ms_per_step")),
            ]
        )
    blocks = [align(["contender", "tokens/s", "spread", "over AR", "over HF", "tau", "ms/step"], rows)] if rows else []
    split = contenders.get("euryale", {}).get("split_ms") or {}
    whole = sum(split.values())
    if whole:
        parts = [[part, number(ms, 3), percent(ms / whole)] for part, ms in split.items()]
        blocks.append(align(["Euryale's step", "ms", "share"], parts))
    blocks.append(
        pairs(
            [
                ("measured on", measured_on(bench)),
                ("accept rule", format.rule_line(bench)),
                ("drafter", bench.get("drafter")),
                ("tree", bench.get("tree")),
                ("nodes in the tree", None if bench.get("num_nodes") is None else str(bench["num_nodes"])),
                ("  used", _nodes_used(bench)),
                ("repeated 8-grams", percent(bench.get("repeated_8grams"))),
            ]
        )
    )
    return join(blocks, bench.get("repeated_8grams"))


def _nodes_used(bench: dict[str, Any]) -> str | None:
    """Said only where steps differ: an adaptive tree, or a drafter that does not always find something."""
    row = (bench.get("contenders") or {}).get("euryale") or {}
    mean, undrafted = row.get("mean_nodes"), row.get("undrafted_share")
    if mean is None or mean == bench.get("num_nodes"):
        return None
    return f"{number(mean, 1)} on average, {percent(undrafted)} of the steps without drafts"


def suite_table(result: dict[str, Any]) -> str:
    """The end of infer/eval.py suite=...: a row for each task, and all of them together."""
    tasks: dict[str, dict[str, Any]] = result.get("tasks") or {}
    rows = []
    for name, task in [*tasks.items(), ("overall", result.get("overall") or {})]:
        own = (task.get("contenders") or {}).get("euryale", {})
        same, total = task.get("identical"), task.get("total")
        rows.append(
            [
                name,
                str(task.get("num_questions", MISSING)),
                number(own.get("tau")),
                number(own.get("tokens_per_s"), 1),
                times(task.get("speedup_vs_ar")),
                times(task.get("speedup_vs_hf")),
                times(task.get("speedup_spec_bench")),
                MISSING if same is None else f"{same}/{total}",
                percent(task.get("repeated_8grams")),
            ]
        )
    rows += [[name, f"0 ({count} too long)", *[MISSING] * 7] for name, count in _absent(result).items()]
    header = ["task", "questions", "tau", "tokens/s", "over AR", "over HF", "as Spec-Bench", "identical", "repeated"]
    blocks = [align(header, rows)]
    overall = result.get("overall") or {}
    if overall.get("right"):
        counts = ", ".join(f"{format.contender(name, result)} {count}" for name, count in overall["right"].items())
        blocks.append(f"right answers of {overall['num_questions']}, by their last number: {counts}")
    return join(blocks, overall.get("repeated_8grams"))


def _absent(result: dict[str, Any]) -> dict[str, int]:
    return {name: count for name, count in (result.get("left_out") or {}).items() if name not in result["tasks"]}


def batch_table(result: dict[str, Any]) -> str:
    """Every way, its speed, and what answering together brings."""
    rows = []
    for way, row in result["ways"].items():
        alone = way.replace("together", "one by one")
        over = row["tokens_per_s"] / result["ways"][alone]["tokens_per_s"]
        low, high = result["spread"][way]
        gain = times(over) if way != alone else ""
        rows.append(
            [way, number(row["tokens_per_s"], 1), f"{number(low, 1)}..{number(high, 1)}", gain, number(row["tau"])]
        )
    first, last = result["prompt_tokens"]
    same = f"{result['identical']} of {result['total']} answers identical in all ways"
    return "\n".join(
        [
            align([f"{result['batch']} prompts", "tokens/s", "spread", "over one by one", "tau"], rows),
            "",
            f"prompts of {first} to {last} tokens; {same}",
        ]
    )
