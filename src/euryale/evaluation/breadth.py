"""Breadth: what heads gain on the bundled prompts of eight kinds, which no heads are trained on.

A run's own held-out rows are of the kind that it was trained on, and flatter it. In each kind, every other prompt is
for calibration and the ones between are for measuring, so that no tree is measured on what it was fitted to.
"""

import logging
from collections.abc import Sequence
from typing import Any

from euryale.base.base import Base
from euryale.data.chat_template import chat_template
from euryale.data.row_prompts import Opening
from euryale.data.rows import Message
from euryale.data.suites import BREADTH, Question, read_suite
from euryale.data.tokens import prompt_ids
from euryale.decoding.engine import Engine
from euryale.decoding.sampling import Sampling
from euryale.errors import UserError
from euryale.evaluation.bench_suite import bench_suite
from euryale.evaluation.config import BenchSettings

NAME = "breadth"
NEW_TOKENS = 64  # of an answer when a run measures itself
NO_GAIN = 1.0  # speed over plain decoding at which heads gain nothing
log = logging.getLogger(__name__)


def can_answer(base: Base) -> bool:
    """Whether the suite's questions can be asked: they need a chat template that takes them, and room for an answer."""
    try:
        if not chat_template(base.tokenizer):
            return False
        prompts = measured_prompts(base)
    except UserError as error:  # a run on plain text has no other use for the template
        log.warning("the breadth prompts are left out: %s", error)
        return False
    return any(len(ids) + NEW_TOKENS <= base.max_length for ids in prompts)


def measured_questions() -> list[Question]:
    """Those that are measured, kind by kind."""
    return _every_other(1)


def measured_prompts(base: Base) -> list[list[int]]:
    """Their prompts, one of each kind after the other, so that the first few are of several kinds."""
    return [_ids(base, question) for question in _in_turn(measured_questions())]


def calibration_openings(base: Base, count: int) -> list[Opening]:
    """At most `count` prompts to calibrate on, of all kinds alike; none for a base without a chat template."""
    if not can_answer(base):
        return []
    openings = [Opening(_ids(base, q), f"{NAME} {q.key}", NAME) for q in _in_turn(_every_other(0))]
    return [opening for opening in openings if len(opening.ids) <= base.max_length // 2][:count]


def mixed_openings(base: Base, openings: list[Opening], count: int, share: float) -> list[Opening]:
    """`count` openings to calibrate on: `share` of them breadth prompts, the others held-out rows, which come first."""
    breadth = calibration_openings(base, round(share * count))
    return openings[: count - len(breadth)] + breadth


def measure_breadth(engine: Engine, prompts_a_kind: int, temperature: float = 0.0, seed: int = 0) -> dict[str, Any]:
    """The `breadth` section of a report: tau and speed over plain decoding by kind.

    The few answers of a kind time too little: its speed is its tau over the cost of a step, in steps of plain decoding,
    which is measured on all kinds together.
    Raises UserError where no prompt fits the context (`can_answer` says that before).
    """
    settings = BenchSettings(("euryale", "ar"), 1, NEW_TOKENS, Sampling(temperature), seed)
    measured = bench_suite(engine, measured_questions(), prompts_a_kind, settings)
    overall = measured["overall"]
    step_cost = overall["contenders"]["euryale"]["tau"] / overall["speedup_vs_ar"]
    kinds = {kind: _numbers(task, step_cost) for kind, task in measured["tasks"].items()}
    return {
        "prompts_a_kind": prompts_a_kind,
        "max_new_tokens": NEW_TOKENS,
        "temperature": temperature,
        "kinds": kinds,
        "overall": _numbers(overall, step_cost),
        "step_cost": step_cost,
        "without_gain": [kind for kind, row in kinds.items() if row["speedup_vs_ar"] <= NO_GAIN],
    }


def _numbers(standings: dict[str, Any], step_cost: float) -> dict[str, Any]:
    tau = standings["contenders"]["euryale"]["tau"]
    return {"num_questions": standings["num_questions"], "tau": tau, "speedup_vs_ar": tau / step_cost}


def _every_other(first: int) -> list[Question]:
    suite = read_suite(NAME, None)
    of_kind = [[question for question in suite if question.task == kind] for kind in BREADTH]
    return [question for questions in of_kind for question in questions[first::2]]


def _in_turn(questions: Sequence[Question]) -> list[Question]:
    """The first of each kind, then the second of each, and so on."""
    places: dict[str, int] = {}
    ranked = []
    for question in questions:
        places[question.task] = places.get(question.task, -1) + 1
        ranked.append((places[question.task], question))
    return [question for _, question in sorted(ranked, key=lambda pair: pair[0])]


def _ids(base: Base, question: Question) -> list[int]:
    return prompt_ids(None, (Message("user", question.turns[0]),), base.tokenizer, question.key)
