"""Text of a comparison: a block for each question as it is answered, and one table at the end."""

import textwrap
from typing import Any

from euryale.report import format
from euryale.report.format import MISSING, number, times
from euryale.report.tables import align, join, measured_on, ratio

_WIDTH = 110


def question_block(entry: dict[str, Any]) -> str:
    """A question, its answer once, and a row for every contender. `entry`: of evaluation/compare.py."""
    question = textwrap.fill(entry["question"], _WIDTH, initial_indent="> ", subsequent_indent="> ")
    rows = [
        [
            format.CONTENDERS.get(name, name),
            number(row["tokens_per_s"], 1),
            number(row["seconds"], 2),
            times(row.get("over_hf")),
            times(row.get("over_ar")),
            number(row.get("tau")),
            _same_text(row, name == entry["answer_of"]),
        ]
        for name, row in entry["contenders"].items()
    ]
    header = ["contender", "tokens/s", "seconds", "over HF", "over AR", "tau", "text"]
    return f"{question}\n\n{_wrapped(entry['answer'])}\n\n{align(header, rows)}"


def comparison_table(result: dict[str, Any]) -> str:
    """All questions together: all tokens over all seconds."""
    contenders = result["contenders"]
    speeds = {name: row["tokens_per_s"] for name, row in contenders.items()}
    rows = [
        [
            format.contender(name, result),
            number(speeds[name], 1),
            times(ratio(speeds[name], speeds.get("hf_generate"))),
            times(ratio(speeds[name], speeds.get("ar"))),
            number(row.get("tau")),
            _num_same(result["questions"], name),
        ]
        for name, row in contenders.items()
    ]
    header = [f"all {result['num_prompts']} questions", "tokens/s", "over HF", "over AR", "tau", "same text"]
    told = [align(header, rows), f"measured on  {measured_on(result)}", _rounding(result)]
    return join(told, result.get("repeated_8grams"))


def _rounding(result: dict[str, Any]) -> str:
    """Why transformers' text may be another one; nothing where it is not."""
    others = [row for e in result["questions"] for name, row in e["contenders"].items() if name.startswith("hf_")]
    if result["dtype"] == "float32" or all(row.get("differs_at") is None for row in others):
        return ""
    return (
        f"In {result['dtype']} two ways of adding the same products up round differently, and where two tokens are "
        "nearly\nas likely transformers may take the other one."
    )


def _same_text(row: dict[str, Any], is_reference: bool) -> str:
    if is_reference:
        return "shown above"
    if "differs_at" not in row:
        return "not compared"
    at = row["differs_at"]
    return "the same" if at is None else f"differs after {at} tokens"


def _num_same(entries: list[dict[str, Any]], name: str) -> str:
    """How many of the answers are the one that is shown."""
    compared = [entry["contenders"][name] for entry in entries if "differs_at" in entry["contenders"][name]]
    if not compared:
        return MISSING
    return f"{sum(row['differs_at'] is None for row in compared)}/{len(compared)}"


def _wrapped(answer: str) -> str:
    """Long lines broken for a terminal; the answer's own lines stay."""
    return "\n".join(textwrap.fill(line, _WIDTH) if line.strip() else "" for line in answer.splitlines())
