"""Comparison of contenders question by question: what each makes of the same prompt, its speed, and where texts part.

The contenders and the clock are those of `bench.py`. They take turns within a question, and another one begins at
the next, so that a machine that warms up or is shared treats them alike.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from euryale.data.chat_template import chat_template
from euryale.data.prompt_files import read_prompts
from euryale.data.rows import Message
from euryale.data.suites import read_suite
from euryale.data.tokens import prompt_ids
from euryale.decoding.engine import Engine
from euryale.errors import UserError
from euryale.evaluation.bench import rotated, warn_when_busy, what_was_asked
from euryale.evaluation.bench_summary import Turns, standings
from euryale.evaluation.config import LLAMA_CPP, BenchSettings
from euryale.evaluation.contenders import CONTENDERS, Turn
from euryale.system.paths import PROJECT

REFERENCE = "ar"  # whose text the others' is compared with
BUNDLED_KINDS = ("questions", "code", "prose")  # of the breadth suite: the first question of each
BUNDLED_OPENINGS = PROJECT / "data" / "prompts.txt"  # for bases without a chat template
_NUM_OPENINGS = 3
_OWN = ("euryale", "ar")


class Asked(NamedTuple):
    """A question as a person wrote it, and the prompt that the base gets."""

    text: str
    ids: list[int]


def read_questions(engine: Engine, questions: Sequence[str], file: str | None, limit: int, room: int) -> list[Asked]:
    """The first `limit` prompts of a file, else the questions, else three bundled ones.

    Questions go through the chat template where the base has one; without one they are texts to go on with.
    Raises UserError: both given, an empty question, a file that cannot be read, a prompt that leaves no `room` for the
    answer (tokens).
    """
    if file is not None and questions:
        raise UserError("questions and prompts cannot both be given. Leave one out.")
    tokenizer = engine.base.tokenizer
    asked = []
    if file is not None:
        for prompt in read_prompts(file, limit):
            ids = prompt_ids(prompt.text, prompt.messages, tokenizer, prompt.key)
            asked.append(Asked(prompt.text or (prompt.messages or ())[-1].content, ids))
    else:
        for number, text in enumerate(questions or _bundled(engine), start=1):
            if not text.strip():
                raise UserError(f"question {number} must hold text; got {text!r}. Leave it out.")
            asked.append(Asked(text, prompt_ids(None, (Message("user", text),), tokenizer, f"question {number}")))
    for question in asked:
        if not 0 < len(question.ids) <= engine.base.max_length - room:
            raise UserError(
                f"a question must have 1 to {max(0, engine.base.max_length - room)} tokens, to leave room for "
                f"max_new_tokens={room} in the context of {engine.base.max_length}; got {len(question.ids)}: "
                f"{question.text[:60]!r}. Shorten it, or lower max_new_tokens."
            )
    return asked


def _bundled(engine: Engine) -> list[str]:
    if not chat_template(engine.base.tokenizer):
        return [prompt.text or "" for prompt in read_prompts(BUNDLED_OPENINGS, _NUM_OPENINGS)]
    suite = read_suite("breadth", None)
    return [next(q.turns[0] for q in suite if q.task == kind) for kind in BUNDLED_KINDS]


def compare(
    engine: Engine,
    questions: Sequence[Asked],
    settings: BenchSettings,
    show: Callable[[dict[str, Any]], None] = lambda answered: None,
) -> dict[str, Any]:
    """Every contender's answer to every question; `show` gets each question's entry as soon as it is answered.

    The entries stand in `questions`: question, answer, and per contender tokens, seconds, tokens_per_s, tau, over_ar,
    over_hf and (where its text is to be that of plain decoding) differs_at: None, or how many tokens are equal before
    the first that is not. The other keys are those of `bench`. Raises UserError as `bench` does.
    """
    settings.check()
    if not questions:
        raise UserError("the comparison was given no questions. Give questions=[...] or prompts=FILE.")
    warn_when_busy()
    names = list(dict.fromkeys(settings.contenders))
    contenders = {name: CONTENDERS[name](engine, settings.sampling, settings.max_new_tokens) for name in names}
    for answer in contenders.values():  # warm-up, a whole answer: kernels are chosen and memory is taken here
        answer(questions[0].ids, settings.seed)
    turns: Turns = {name: [[] for _ in range(settings.repeats)] for name in names}
    entries = []
    for index, question in enumerate(questions):
        for repeat in range(settings.repeats):
            for name in rotated(names, index + repeat):
                turns[name][repeat].append(contenders[name](question.ids, settings.seed + index))
        own = {name: [[each[index]] for each in rounds] for name, rounds in turns.items()}
        entries.append(_entry(engine, question, own, settings))
        show(entries[-1])
    temperature = settings.sampling.temperature
    told = standings(turns, engine.max_depth(temperature), is_greedy=temperature == 0)
    return what_was_asked(engine, settings) | told | {"questions": entries}


def _entry(engine: Engine, question: Asked, own: Turns, settings: BenchSettings) -> dict[str, Any]:
    """What is told of one question: `own` holds every contender's rounds, a single turn in each."""
    reference = REFERENCE if REFERENCE in own else next(iter(own))
    text = own[reference][0][0].ids
    rows = {name: _row([each[0] for each in rounds]) for name, rounds in own.items()}
    for name, row in rows.items():
        for key, rival in (("over_ar", "ar"), ("over_hf", "hf_generate")):
            if rival in rows:
                row[key] = row["tokens_per_s"] / rows[rival]["tokens_per_s"]
        # transformers draws other numbers above T = 0, and llama.cpp has weights of its own: other texts, rightly
        if name in _OWN or (settings.sampling.temperature == 0 and name != LLAMA_CPP):
            row["differs_at"] = _first_difference(text, own[name][0][0].ids)
    answer = engine.base.tokenizer.decode(text, skip_special_tokens=True)
    return {"question": question.text, "answer": answer, "answer_of": reference, "contenders": rows}


def _row(turns: Sequence[Turn]) -> dict[str, Any]:
    """One contender's median round at one question."""
    told = sorted(turns, key=lambda turn: turn.seconds / max(1, len(turn.ids)))[len(turns) // 2]
    row: dict[str, Any] = {
        "tokens": len(told.ids),
        "seconds": told.seconds,
        "tokens_per_s": len(told.ids) / told.seconds,
    }
    return row | ({"tau": len(told.ids) / len(told.accepted)} if told.accepted else {})


def _first_difference(ids: Sequence[int], other: Sequence[int]) -> int | None:
    """How many tokens two answers share before they part; None where they are equal."""
    if list(ids) == list(other):
        return None
    pairs = zip(ids, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(ids), len(other)))
