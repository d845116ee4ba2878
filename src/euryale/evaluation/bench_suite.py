"""Benchmark on a published suite, task by task.

The benchmark of `bench.py` over all questions, its turns added up by task and once more over everything. A second
turn is asked after the base's own answer to the first, which is the same text for every contender.

The last of a task's numbers is Spec-Bench's: the mean over questions of tokens per second, divided by the same mean of
plain decoding. Ours divides all tokens by all seconds, which a few short answers cannot sway.

Where the suite tells the right answers (gsm8k), a contender's are counted by the last number that they name.
"""

import logging
from collections.abc import Sequence
from statistics import fmean, median
from typing import Any, NamedTuple

from euryale.data.rows import Message
from euryale.data.suites import Question, last_number
from euryale.data.tokens import prompt_ids
from euryale.decoding.engine import Engine
from euryale.errors import UserError, check_least
from euryale.evaluation.bench import take_turns, what_was_asked
from euryale.evaluation.bench_summary import Turns, standings
from euryale.evaluation.config import BenchSettings
from euryale.evaluation.contenders import Turn
from euryale.system.progress import Progress

OVERALL = "overall"
log = logging.getLogger(__name__)


class Asked(NamedTuple):
    """Prompts that fit, and to which question each belongs."""

    prompts: list[list[int]]
    questions: list[Question]
    places: list[list[int]]  # of each question's turns among the prompts
    left_out: dict[str, int]  # questions that do not fit, by task


def bench_suite(engine: Engine, questions: Sequence[Question], limit: int, settings: BenchSettings) -> dict[str, Any]:
    """`tasks` holds the standings of every task, over its first `limit` questions that fit, and `overall` those of
    all of them together.

    Raises UserError: an unknown contender, no question that fits the context, numbers out of range.
    """
    settings.check()
    asked = ask(engine, questions, limit, settings)
    turns = take_turns(engine, asked.prompts, settings)
    temperature = settings.sampling.temperature
    depth, is_greedy = engine.max_depth(temperature), temperature == 0
    groups = {task: [i for i, q in enumerate(asked.questions) if q.task == task] for task in _tasks(asked.questions)}
    groups[OVERALL] = list(range(len(asked.questions)))
    tasks = {}
    for task, numbers in groups.items():
        places = [asked.places[number] for number in numbers]
        part = _only(turns, [place for each in places for place in each])
        tasks[task] = {"num_questions": len(numbers)} | standings(part, depth, is_greedy)
        tasks[task] |= _spec_bench_speedup(turns, places)
        tasks[task] |= _right_answers(engine, turns, asked, numbers)
    overall = tasks.pop(OVERALL)
    return what_was_asked(engine, settings) | {"tasks": tasks, OVERALL: overall, "left_out": asked.left_out}


def ask(engine: Engine, questions: Sequence[Question], limit: int, settings: BenchSettings) -> Asked:
    """Every turn of the first `limit` questions of each task whose turns all leave room for an answer."""
    check_least(1, limit=limit)
    asked = Asked([], [], [], {})
    kept = dict.fromkeys(_tasks(questions), 0)
    progress = Progress("reading", len(questions), "questions")
    for question in questions:
        if kept[question.task] < limit:
            prompts = _turns(engine, question, len(asked.prompts), settings)
            if prompts is None:
                asked.left_out[question.task] = asked.left_out.get(question.task, 0) + 1
            else:
                kept[question.task] += 1
                asked.places.append(list(range(len(asked.prompts), len(asked.prompts) + len(prompts))))
                asked.prompts.extend(prompts)
                asked.questions.append(question)
        progress.advance()
    progress.close()
    context = f"leaves room for max_new_tokens={settings.max_new_tokens} in the context of {engine.base.max_length}"
    if not asked.questions:
        raise UserError(f"no question {context} tokens. Lower max_new_tokens, or take another base.")
    if asked.left_out:
        counts = ", ".join(
            f"{count} of {task}" + ("" if kept[task] else " (all of it)") for task, count in asked.left_out.items()
        )
        log.warning("left out, because not every turn %s tokens: %s", context, counts)
    return asked


def _turns(engine: Engine, question: Question, place: int, settings: BenchSettings) -> list[list[int]] | None:
    """The ids of every turn, the first of them to become prompt number `place`; None when one does not fit."""
    base, room = engine.base, engine.base.max_length - settings.max_new_tokens
    if not question.turns:
        ids = prompt_ids(question.text, None, base.tokenizer, question.key)
        return [ids] if 0 < len(ids) <= room else None
    prompts: list[list[int]] = []
    said: list[Message] = []
    for turn in question.turns:
        if prompts:
            seed = settings.seed + place + len(prompts) - 1
            [answer] = Engine(base, drafter="none").generate(
                prompts[-1:], settings.max_new_tokens, seed=seed, **settings.sampling.keywords()
            )
            said.append(Message("assistant", answer.text))
        said.append(Message("user", turn))
        prompts.append(prompt_ids(None, tuple(said), base.tokenizer, question.key))
        if not 0 < len(prompts[-1]) <= room:
            return None
    return prompts


def _tasks(questions: Sequence[Question]) -> list[str]:
    return list(dict.fromkeys(question.task for question in questions))


def _only(turns: Turns, places: Sequence[int]) -> Turns:
    return {name: [[each[place] for place in places] for each in rounds] for name, rounds in turns.items()}


def _spec_bench_speedup(turns: Turns, places: Sequence[Sequence[int]]) -> dict[str, float]:
    """The median round's ratio of mean speeds, a question's turns taken together."""
    if "euryale" not in turns or "ar" not in turns:
        return {}
    pairs = zip(turns["euryale"], turns["ar"], strict=True)
    return {"speedup_spec_bench": median(_mean_speed(own, places) / _mean_speed(ar, places) for own, ar in pairs)}


def _right_answers(engine: Engine, turns: Turns, asked: Asked, numbers: Sequence[int]) -> dict[str, dict[str, int]]:
    """How many of these questions each contender answered rightly in its first round, where that can be told."""
    right = {number: asked.questions[number].right for number in numbers}
    if None in right.values():
        return {}
    decode = engine.base.tokenizer.decode
    return {
        "right": {
            name: sum(
                last_number(decode(rounds[0][asked.places[number][-1]].ids, skip_special_tokens=True)) == answer
                for number, answer in right.items()
            )
            for name, rounds in turns.items()
        }
    }


def _mean_speed(turns: Sequence[Turn], places: Sequence[Sequence[int]]) -> float:
    return fmean(sum(len(turns[p].ids) for p in each) / sum(turns[p].seconds for p in each) for each in places)
