"""What does a person read at the end of a run? Plain ASCII tables, made from the sections of a report (`report.py`).

Every function takes plain dicts, tolerates absent sections and returns text without a final newline.
"""

from collections.abc import Sequence
from typing import Any

from euryale.report import format
from euryale.report.format import MISSING, number, percent, times
from euryale.system.memory import gigabytes


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
    chosen = (calibration or {}).get("num_nodes")
    num_nodes = bench.get("num_nodes") or chosen
    how = ", chosen by timing this machine" if num_nodes == chosen else ""
    blocks.append(
        pairs(
            [
                ("measured on", _measured_on(evaluation or bench)),
                ("tau (tokens per step)", number(evaluation.get("tau"))),
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
    return _join(blocks, _repeated(evaluation, bench))


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
                ("measured on", _measured_on(evaluation)),
                ("tau (tokens per step)", number(evaluation.get("tau"))),
                ("accept rule", format.rule_line(evaluation)),
                ("losslessness", format.identical_line(evaluation)),
                ("  against HF generate", None if same is None else f"{same}/{total} identical"),
                ("  token by token", format.teacher_forced_line(evaluation)),
                ("repeated 8-grams", percent(evaluation.get("repeated_8grams"))),
            ]
        )
    )
    return _join(blocks, evaluation.get("repeated_8grams"))


def bench_table(bench: dict[str, Any]) -> str:
    """The end of infer/bench.py: every contender on the same prompts, then where Euryale's step time goes."""
    contenders: dict[str, dict[str, Any]] = bench.get("contenders") or {}
    rows = []
    for name, row in contenders.items():
        speed = row.get("tokens_per_s")
        low, high = (bench.get("spread") or {}).get(name) or (None, None)
        ratios = [_ratio(speed, contenders.get(rival, {}).get("tokens_per_s")) for rival in ("ar", "hf_generate")]
        rows.append(
            [
                format.contender(name, bench),
                number(speed, 1),
                MISSING if low is None else f"{number(low, 1)}..{number(high, 1)}",
                *(times(ratio) for ratio in ratios),
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
                ("measured on", _measured_on(bench)),
                ("accept rule", format.rule_line(bench)),
                ("drafter", bench.get("drafter")),
                ("nodes in the tree", None if bench.get("num_nodes") is None else str(bench["num_nodes"])),
                ("  used", _nodes_used(bench)),
                ("repeated 8-grams", percent(bench.get("repeated_8grams"))),
            ]
        )
    )
    return _join(blocks, bench.get("repeated_8grams"))


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
    return _join([align(header, rows)], (result.get("overall") or {}).get("repeated_8grams"))


def _absent(result: dict[str, Any]) -> dict[str, int]:
    return {name: count for name, count in (result.get("left_out") or {}).items() if name not in result["tasks"]}


def calibration_table(calibration: dict[str, Any]) -> str:
    """One entry of tree.json: what each number of nodes costs and brings on this machine."""
    tau, step_ms = calibration.get("tau") or {}, calibration.get("step_ms") or {}
    alone = _ratio(tau.get("1"), step_ms.get("1"))
    chosen = calibration.get("num_nodes"), calibration.get("max_depth")
    sizes: list[tuple[Any, Any, Any, Any]] = [(int(n), None, tau[n], step_ms.get(n)) for n in tau]
    for tree in calibration.get("shallow") or []:
        if (tree["num_nodes"], tree["max_depth"]) == chosen:
            sizes.append((*chosen, tree["tau"], tree["step_ms"]))
    rows = []
    for nodes, depth, tokens, milliseconds in sorted(sizes, key=lambda size: (size[0], size[1] is None)):
        per_ms = _ratio(tokens, milliseconds)
        rows.append(
            [
                f"{nodes}" + (f", {depth} deep" if depth else "") + (" <- chosen" if (nodes, depth) == chosen else ""),
                number(tokens),
                number(milliseconds),
                number(None if per_ms is None else 1000 * per_ms, 1),
                times(_ratio(per_ms, alone)),
            ]
        )
    return align(["nodes", "tau", "ms/step", "tokens/s", "over 1 node"], rows)


def _what_was_trained(report: dict[str, Any]) -> str:
    base, training = report.get("base") or {}, report.get("training") or {}
    details = [base.get(key) for key in ("architecture", "dtype", "quantization")]
    kind = ", ".join(str(detail) for detail in details if detail not in (None, "none"))
    tokens, seconds, loss = training.get("tokens"), training.get("seconds"), training.get("final_loss_nats")
    lora, moved = training.get("adapter"), training.get("base_kl_nats")
    drift = f", {moved:.4f} nats from the base" if moved is not None else ""
    speed = _ratio(tokens, seconds)
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
    return gigabytes(peak) + (f" (estimated: {gigabytes(sum(parts.values()))} beside the process)" if parts else "")


def _measured_on(section: dict[str, Any]) -> str | None:
    words = [f"{section['num_prompts']} prompts"] if section.get("num_prompts") is not None else []
    if section.get("max_new_tokens") is not None:
        words.append(f"up to {section['max_new_tokens']} new tokens each")
    if section.get("temperature") is not None:
        words.append(f"temperature {section['temperature']:g}")
    return ", ".join(words) or None


def _repeated(evaluation: dict[str, Any], bench: dict[str, Any]) -> float | None:
    """The larger share: a warning must not hide behind the other measurement."""
    shares = [section.get("repeated_8grams") for section in (evaluation, bench)]
    return max((share for share in shares if share is not None), default=None)


def _nodes_used(bench: dict[str, Any]) -> str | None:
    """Said only where steps differ: an adaptive tree, or a drafter that does not always find something."""
    row = (bench.get("contenders") or {}).get("euryale") or {}
    mean, undrafted = row.get("mean_nodes"), row.get("undrafted_share")
    if mean is None or mean == bench.get("num_nodes"):
        return None
    return f"{number(mean, 1)} on average, {percent(undrafted)} of the steps without drafts"


def _ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None


def _join(blocks: list[str], repeated: float | None) -> str:
    warning = format.looping_warning(repeated)
    return "\n\n".join([block for block in blocks if block] + ([f"WARNING: {warning}"] if warning else []))


def batch_table(result: dict[str, Any]) -> str:
    """Every way, its speed and what company brings."""
    rows = []
    for way, row in result["ways"].items():
        alone = way.replace("together", "one by one")
        ratio = row["tokens_per_s"] / result["ways"][alone]["tokens_per_s"]
        low, high = result["spread"][way]
        gain = times(ratio) if way != alone else ""
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
