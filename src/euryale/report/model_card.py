"""Model card, the README.md of a checkpoint folder: what it is, how to use it, what was measured.

Only numbers that a report holds are written, together with the command, the machine and the commit they came from.
"""

import shlex
from collections.abc import Sequence
from typing import Any

from euryale.report import format
from euryale.report.format import MISSING, number, percent, times
from euryale.report.tables import breadth_rows

PICTURES = {
    "accuracy.png": "Accuracy by head and rank",
    "calibration.png": "tau, step time and speed against the number of nodes",
    "tree.png": "The tree",
    "bench.png": "Decoding speed",
}


def model_card(report: dict[str, Any], pictures: Sequence[str] = ()) -> str:
    """Markdown with a Hugging Face header. `pictures` are the names of its plots (keys of PICTURES)."""
    parts = [_header(report), _what_it_is(report), _usage(), *_measured(report), _origin(report)]
    parts += [f"![{PICTURES[name]}]({name})" for name in pictures]
    return "\n\n".join(part for part in parts if part) + "\n"


def _header(report: dict[str, Any]) -> str:
    base = report.get("base") or {}
    lines = ["---", "library_name: euryale", "tags: [medusa, speculative-decoding]"]
    if str(base.get("fingerprint")).startswith("hub:"):  # a folder of somebody's disk would be a broken link
        lines.append(f"base_model: {base['path']}")
    return "\n".join([*lines, "---"])


def _what_it_is(report: dict[str, Any]) -> str:
    base, training = report.get("base") or {}, report.get("training") or {}
    name = base.get("path", "an unnamed base")
    details = [str(base[key]) for key in ("architecture", "dtype") if base.get(key)]
    details += [f"quantization {base['quantization']}"] if base.get("quantization", "none") != "none" else []
    details += [f"revision {base['revision']}"] if base.get("revision") else []
    trained = ""
    if training.get("steps") is not None:
        tokens = f" on {training['tokens']:,} tokens" if training.get("tokens") is not None else ""
        time = f" in {format.duration(training['seconds'])}" if training.get("seconds") is not None else ""
        with_base = "; the base was not changed."
        if lora := training.get("adapter"):
            with_base = (
                f", in part together with LoRA adapters of rank {lora['rank']} (adapter/), which belong to them."
            )
        trained = f" They were trained for {training['steps']:,} steps{tokens}{time}{with_base}"
    return (
        f"# Euryale heads for {name}\n\n"
        f"{format.describe_heads(report.get('heads') or {})} for the frozen base `{name}`"
        f"{' (' + ', '.join(details) + ')' if details else ''}.{trained}\n"
        "The heads propose a tree of next tokens and the base checks them all in one pass, so the text is the base's\n"
        "own; only its speed changes. They work with this base alone."
    )


def _usage() -> str:
    return (
        "## Use\n\n```python\nfrom euryale import Engine\n"
        'engine = Engine.load("path/to/this/folder")\n'
        'print(engine.generate("Once upon a time", max_new_tokens=128)[0].text)\n```'
    )


def _measured(report: dict[str, Any]) -> list[str]:
    evaluation, bench = report.get("evaluation") or {}, report.get("bench") or {}
    parts = ["## Measured"]
    vs_ar, vs_hf = format.speedups(bench)
    rows = [
        ("tokens per step (tau)", number(evaluation.get("tau")), _where(evaluation)),
        ("speed over the same engine without drafts", times(vs_ar), _where(bench)),
        ("speed over Hugging Face generate", times(vs_hf), _where(bench)),
        ("repeated 8-grams, evaluation", percent(evaluation.get("repeated_8grams")), _where(evaluation)),
        ("repeated 8-grams, benchmark", percent(bench.get("repeated_8grams")), _where(bench)),
    ]
    rows = [row for row in rows if row[1] != MISSING]
    parts.append(_markdown(["what", "value", "measured on"], rows))
    if rule := format.rule_line(evaluation) or format.rule_line(bench):
        parts.append(f"Accept rule: {rule}.")
    lossless = format.identical_line(evaluation)
    if lossless:
        parts.append(f"Losslessness: {lossless}.")
    for name, section in (("evaluation", evaluation), ("benchmark", bench)):
        warning = format.looping_warning(section.get("repeated_8grams"))
        if warning:
            parts.append(f"> **Warning ({name}).** {warning}")
    if report.get("accuracy"):
        ranks = format.top_ranks(report["accuracy"])
        accuracy = [[str(row["head"]), *(percent(row.get(f"top{k}")) for k in ranks)] for row in report["accuracy"]]
        parts.append("Share of positions at which a head's first k guesses hold the base's own token:")
        parts.append(_markdown(["head", *(f"top-{k}" for k in ranks)], accuracy))
    if bench.get("contenders"):
        speeds = [
            [format.contender(name, bench), number(row.get("tokens_per_s"), 1), number(row.get("tau"))]
            for name, row in bench["contenders"].items()
        ]
        parts.append(_markdown(["contender", "tokens/s", "tau"], speeds))
    parts += _breadth(report.get("breadth") or {})
    if not any(parts[1:]):
        parts.append("Nothing yet: `infer/eval.py` and `infer/bench.py` measure accuracy, losslessness and speed.")
    return parts


def _breadth(breadth: dict[str, Any]) -> list[str]:
    """tau and speed by kind of prompt; nothing where it was not measured."""
    if not breadth:
        return []
    where = (
        f"Bundled prompts of eight kinds that were neither trained nor calibrated on ({breadth['prompts_a_kind']} of "
        f"each, up to {breadth['max_new_tokens']} new tokens, temperature {breadth['temperature']:g}). A kind's "
        "speed is its tau over the cost of a step, measured on all of them:"
    )
    warning = format.breadth_warning(breadth)
    table = _markdown(["kind", "tau", "over AR"], breadth_rows(breadth))
    return [where, table] + ([f"> **Warning (breadth).** {warning}"] if warning else [])


def _where(section: dict[str, Any]) -> str:
    words = [_count(section["num_prompts"], "prompt")] if section.get("num_prompts") is not None else []
    words += [f"temperature {section['temperature']:g}"] if section.get("temperature") is not None else []
    words += [_count(section["num_nodes"], "node")] if section.get("num_nodes") is not None else []
    return ", ".join(words) or MISSING


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _origin(report: dict[str, Any]) -> str:
    """Command, machine, commit, versions: what it takes to measure again."""
    provenance = report.get("provenance") or {}
    versions = ", ".join(f"{name} {version}" for name, version in (provenance.get("versions") or {}).items())
    rows = [
        ("command", f"`python {shlex.join(provenance['argv'])}`" if provenance.get("argv") else None),
        ("hardware", format.describe_hardware(report.get("hardware") or {}) or provenance.get("platform")),
        ("commit", provenance.get("git_commit")),
        ("versions", versions),
        ("time", provenance.get("time")),
    ]
    lines = [f"- {name}: {value}" for name, value in rows if value]
    return "\n".join(["## Where the numbers come from", "", *lines]) if lines else ""


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text; nothing when there is no row."""
    if not rows:
        return ""
    rule = ["---", *("---:" for _ in header[1:])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))
