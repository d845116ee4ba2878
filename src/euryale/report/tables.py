"""Plain ASCII tables for the end of a run, made from the sections of a report (`report.py`).

Every function takes plain dicts, tolerates absent sections and returns text without a final newline.
"""

from collections.abc import Sequence
from typing import Any

from euryale.report import format
from euryale.report.format import MISSING, number, percent, times
from euryale.system.units import gigabytes


def align(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns under their header, the first to the left and the others to the right, two spaces apart."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def pairs(rows: Sequence[tuple[str, str | None]]) -> str:
    """`name  value` lines; a pair without a value is left out."""
    shown = [(name, value) for name, value in rows if value is not None and value != MISSING]
    width = max((len(name) for name, _ in shown), default=0)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in shown)


def training_summary(report: dict[str, Any]) -> str:
    """The end of train/run.py: what was trained, how good it is, how much faster decoding becomes."""
    evaluation, bench = report.get("evaluation") or {}, report.get("bench") or {}
    blocks = [_what_was_trained(report)]
    if report.get("accuracy"):
        blocks.append(accuracy_table(report["accuracy"]))
    vs_ar, vs_hf = format.speedups(bench)
    speed = bench.get("contenders", {}).get("euryale", {}).get("tokens_per_s")
    calibration = format.nearest_calibration(report.get("calibration"), evaluation.get("temperature"))
    chosen = (format.dynamic_tree(calibration or {}) or calibration or {}).get("num_nodes")
    num_nodes = bench.get("num_nodes") or chosen
    how = ", chosen by timing this machine" if num_nodes == chosen else ""
    blocks.append(
        pairs(
            [
                ("measured on", measured_on(evaluation or bench)),
                ("tau (tokens per step)", number(evaluation.get("tau"))),
                ("tree", bench.get("tree")),
                ("nodes in the tree", None if num_nodes is None else f"{num_nodes}{how}"),
                ("speed", None if speed is None else f"{number(speed, 1)} tokens/s"),
                ("  over AR, same engine", times(vs_ar)),
                ("  over HF generate", times(vs_hf)),
                ("accept rule", format.rule_line(evaluation)),
                ("losslessness", format.identical_line(evaluation)),
                ("repeated 8-grams", percent(_repeated(evaluation, bench))),
            ]
        )
    )
    blocks.append(breadth_table(report.get("breadth") or {}))
    return join(blocks, _repeated(evaluation, bench))


def breadth_table(breadth: dict[str, Any]) -> str:
    """tau and speed by kind of prompt, none of them of the run's own data; nothing where it was not measured."""
    if not breadth:
        return ""
    warning = format.breadth_warning(breadth)
    table = align(["bundled prompts of other kinds", "tau", "over AR"], breadth_rows(breadth))
    return table + (f"\n\nWARNING: {warning}" if warning else "")


def breadth_rows(breadth: dict[str, Any]) -> list[list[str]]:
    """A row for each kind, and one for all of them together."""
    kinds = [*(breadth.get("kinds") or {}).items(), ("all of them", breadth.get("overall") or {})]
    return [[kind, number(row.get("tau")), times(row.get("speedup_vs_ar"))] for kind, row in kinds]


def accuracy_table(accuracy: list[dict[str, Any]]) -> str:
    """Share of positions at which a head's first k guesses hold the base's own next token."""
    ranks = format.top_ranks(accuracy)
    rows = [
        [f"{row['head']} ({row['head'] + 2} tokens ahead)", *(percent(row.get(f"top{k}")) for k in ranks)]
        for row in accuracy
    ]
    return align(["head", *(f"top-{k}" for k in ranks)], rows)


def evaluation_table(report: dict[str, Any]) -> str:
    """The end of infer/eval.py: accuracy by head and rank, tau by depth, losslessness."""
    evaluation = report.get("evaluation") or {}
    blocks = [accuracy_table(report["accuracy"])] if report.get("accuracy") else []
    shares = evaluation.get("tau_by_depth") or []
    if shares:
        rows = [[str(depth), percent(share)] for depth, share in enumerate(shares, start=1)]
        blocks.append(align(["accepted drafted tokens, at least", "share of steps"], rows))
    same, total = evaluation.get("identical_hf"), evaluation.get("total")
    blocks.append(
        pairs(
            [
                ("measured on", measured_on(evaluation)),
                ("tree", evaluation.get("tree")),
                ("tau (tokens per step)", number(evaluation.get("tau"))),
                ("accept rule", format.rule_line(evaluation)),
                ("losslessness", format.identical_line(evaluation)),
                ("  against HF generate", None if same is None else f"{same}/{total} identical"),
                ("  token by token", format.teacher_forced_line(evaluation)),
                ("repeated 8-grams", percent(evaluation.get("repeated_8grams"))),
            ]
        )
    )
    return join(blocks, evaluation.get("repeated_8grams"))


def calibration_table(calibration: dict[str, Any]) -> str:
    """One entry of tree.json: what each number of nodes costs and brings on this machine."""
    tau, step_ms = calibration.get("tau") or {}, calibration.get("step_ms") or {}
    alone = ratio(tau.get("1"), step_ms.get("1"))
    sizes = [(int(n), tau[n], step_ms.get(n)) for n in tau]
    rows = [_size_row(str(nodes), tokens, ms, ratio(ratio(tokens, ms), alone)) for nodes, tokens, ms in sorted(sizes)]
    chosen = format.chosen_tree(calibration)
    if chosen.get("num_nodes") is not None:
        dynamic = format.dynamic_tree(calibration)
        name = f"{'best of one tree' if dynamic else 'chosen'}: {format.describe_tree(chosen)}"
        rows.append(_size_row(name, chosen.get("tau"), chosen.get("step_ms"), chosen.get("speedup")))
        if dynamic:
            tokens, ms = dynamic.get("tau"), dynamic.get("step_ms")
            name = f"chosen: dynamic, {format.describe_tree(dynamic)}"
            rows.append(_size_row(name, tokens, ms, ratio(ratio(tokens, ms), alone)))
    return align(["nodes", "tau", "ms/step", "tokens/s", "over 1 node"], rows)


def _size_row(name: str, tokens: float | None, milliseconds: float | None, over_one: float | None) -> list[str]:
    per_ms = ratio(tokens, milliseconds)
    return [
        name,
        number(tokens),
        number(milliseconds),
        number(None if per_ms is None else 1000 * per_ms, 1),
        times(over_one),
    ]


def _what_was_trained(report: dict[str, Any]) -> str:
    base, training = report.get("base") or {}, report.get("training") or {}
    details = [base.get(key) for key in ("architecture", "dtype", "quantization")]
    kind = ", ".join(str(detail) for detail in details if detail not in (None, "none"))
    tokens, seconds, loss = training.get("tokens"), training.get("seconds"), training.get("final_loss_nats")
    lora, moved = training.get("adapter"), training.get("base_kl_nats")
    drift = f", {moved:.4f} nats from the base" if moved is not None else ""
    speed = ratio(tokens, seconds)
    return pairs(
        [
            ("base", None if not base.get("path") else f"{base['path']}" + (f" ({kind})" if kind else "")),
            ("trained", format.describe_heads(report["heads"]) if report.get("heads") else None),
            ("steps", None if training.get("steps") is None else f"{training['steps']:,}"),
            ("tokens", None if tokens is None else f"{tokens:,}" + (f" ({speed:,.0f} per second)" if speed else "")),
            ("time", format.duration(seconds)),
            ("final loss", None if loss is None else f"{loss:.4f} nats"),
            ("adapters", f"LoRA of rank {lora['rank']}{drift}" if lora else None),
            ("peak memory", _peak(report.get("memory") or {})),
        ]
    )


def _peak(memory: dict[str, Any]) -> str | None:
    peak, parts = memory.get("peak_bytes"), memory.get("estimated_bytes")
    if peak is None:
        return None
    return gigabytes(peak) + (f" (estimated: {gigabytes(sum(parts.values()))})" if parts else "")


def measured_on(section: dict[str, Any]) -> str | None:
    """`12 prompts, up to 128 new tokens each, temperature 0`."""
    words = [f"{section['num_prompts']} prompts"] if section.get("num_prompts") is not None else []
    if section.get("max_new_tokens") is not None:
        words.append(f"up to {section['max_new_tokens']} new tokens each")
    if section.get("temperature") is not None:
        words.append(f"temperature {section['temperature']:g}")
    return ", ".join(words) or None


def _repeated(evaluation: dict[str, Any], bench: dict[str, Any]) -> float | None:
    """The larger share, so that the other measurement cannot hide a warning."""
    shares = [section.get("repeated_8grams") for section in (evaluation, bench)]
    return max((share for share in shares if share is not None), default=None)


def ratio(above: float | None, below: float | None) -> float | None:
    """None where a number is missing."""
    return above / below if above is not None and below else None


def join(blocks: list[str], repeated: float | None) -> str:
    """The blocks that are not empty, and a warning where the text repeats itself."""
    warning = format.looping_warning(repeated)
    return "\n\n".join([block for block in blocks if block] + ([f"WARNING: {warning}"] if warning else []))
