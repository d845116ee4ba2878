"""Questions that the base writes itself, from nothing but its own chat template (Magpie, Xu et al. 2024, 2406.08464).

An instruct model that is shown the opening of a user's turn goes on as a user would: what it samples there is a
question of the kind that it was trained on. So heads for any instruct model need no data set: data=self. A share of the
questions is followed by a second one, written after a short answer. The file of questions is then a source of
conversations like any other: the base answers them, and rows are held out by their content.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from typing import Any

from euryale.base.base import Base
from euryale.data.rows import Message
from euryale.data.tokens import prompt_ids
from euryale.decoding.engine import Engine
from euryale.errors import UserError, check_least, check_share
from euryale.regenerate.manifest import folder_of, template_name
from euryale.regenerate.question_frame import KINDS, end_of_turn, is_usable, kind_of, question_frame
from euryale.system.files import check_writable, write_atomically
from euryale.system.progress import Progress

FILE = "questions.jsonl"
_PART = 512  # questions a part, far more than are written at once: a row that ends is replaced. A kill costs one part
_TRIES = 3  # samples of a question until one can be asked
_MIN_P = 0.03  # tokens rarer than this share of the likeliest are noise in a small model's questions
_ANSWER_TOKENS = 64  # of the short answer between two questions
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class QuestionSettings:
    """How many questions, and of what kind."""

    count: int
    max_tokens: int = 128  # of a question; longer ones are dropped
    followup_share: float = 0.25  # of the questions have a second one after them
    temperature: float = 1.0
    seed: int = 0

    def check(self) -> None:
        """Raises UserError for numbers out of range."""
        check_least(1, "data.", questions=self.count, question_tokens=self.max_tokens)
        check_share("data.followup_share", self.followup_share)


def write_questions(base: Base, settings: QuestionSettings, root: Path, num_rows: int = 128) -> Path:
    """The file of questions below `root`: written, or found there; an interrupted one goes on after its last part.

    One row a line, {"messages": [...], "kind": ...}, at most `settings.count` of them: what cannot be asked and exact
    duplicates are left out. num_rows: questions that are written at once. Raises UserError: a base without a chat
    template, a folder that cannot be written.
    """
    settings.check()
    question_frame(base.tokenizer)  # raises for a template that has no place for a question
    identity = {"base": base.identity(), "chat_template": template_name(base), "kinds": KINDS, "part": _PART}
    identity |= asdict(settings)
    name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    folder = folder_of(root, base.path, name, "questions-")
    file = folder / FILE
    if file.is_file():
        log.info("questions: reusing %s", file)
        return file
    check_writable(root, "regenerate.output")
    engine = Engine(base, drafter="none", max_rows=num_rows)
    progress = Progress("base writes questions", settings.count, "questions")
    rows: list[dict[str, Any]] = []
    for start in range(0, settings.count, _PART):
        part = folder / f"part-{start:09d}.jsonl"
        numbers = range(start, min(start + _PART, settings.count))
        if not part.is_file():
            _write_lines(part, _ask(engine, numbers, settings))
        rows += [json.loads(line) for line in part.read_text(encoding="utf-8").splitlines()]
        progress.advance(len(numbers))
    progress.close()
    unique = list({row["messages"][0]["content"]: row for row in reversed(rows)}.values())[::-1]
    if not unique:
        raise UserError(f"data=self: {base.path} wrote no question that can be asked. Give texts: data=files.")
    _write_lines(file, unique)
    for part in folder.glob("part-*.jsonl"):
        part.unlink()
    log.info("questions: %d of %d can be asked and differ, in %s", len(unique), settings.count, file)
    return file


def _ask(engine: Engine, numbers: Sequence[int], settings: QuestionSettings) -> list[dict[str, Any]]:
    """The rows of these questions, in their order."""
    found: dict[int, list[Message]] = {}
    for attempt in range(_TRIES):
        todo = [number for number in numbers if number not in found]
        found |= _next_turns(engine, {number: [] for number in todo}, settings, attempt)
    followed = {number: turns for number, turns in found.items() if has_followup(number, settings.followup_share)}
    found |= _next_turns(engine, _with_short_answers(engine, followed), settings, _TRIES)
    return [
        {"messages": [turn._asdict() for turn in found[number]], "kind": kind_of(number)}
        for number in numbers
        if number in found
    ]


def has_followup(number: int, share: float) -> bool:
    """Whether a second question is written after this one: `share` of the questions of every kind, evenly spread."""
    place = number // 2  # free questions and the other kinds alternate
    return ceil((place + 1) * share) > ceil(place * share)


def _next_turns(
    engine: Engine, histories: dict[int, list[Message]], settings: QuestionSettings, salt: int
) -> dict[int, list[Message]]:
    """Each history with one more question, where one was written that can be asked."""
    tokenizer = engine.base.tokenizer
    prompts, kept = [], []
    for number, history in histories.items():
        system = None if history else KINDS[kind_of(number)]
        ids = tokenizer(question_frame(tokenizer, history, system).before, add_special_tokens=False)["input_ids"]
        if len(ids) + settings.max_tokens <= engine.base.max_length:
            prompts.append(ids)
            kept.append(number)
    if not prompts:
        return {}
    stop = end_of_turn(tokenizer, question_frame(tokenizer))
    seeds = [(settings.seed * 1_000_003 + number * 8 + salt) % 2**62 for number in kept]
    answers = engine.generate(
        prompts, settings.max_tokens, temperature=settings.temperature, seed=seeds, stop=stop, min_p=_MIN_P
    )
    return {
        number: [*histories[number], Message("user", answer.text.strip())]
        for number, answer in zip(kept, answers, strict=True)
        if answer.finish_reason in ("stop", "eos") and is_usable(answer.text)
    }


def _with_short_answers(engine: Engine, histories: dict[int, list[Message]]) -> dict[int, list[Message]]:
    """Each history with the beginning of the base's own greedy answer, after which a second question can be written."""
    if not histories:
        return {}
    prompts = [prompt_ids(None, tuple(turns), engine.base.tokenizer) for turns in histories.values()]
    answers = engine.generate(prompts, _ANSWER_TOKENS)
    return {
        number: [*turns, Message("assistant", answer.text)]
        for (number, turns), answer in zip(histories.items(), answers, strict=True)
    }


def _write_lines(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(file) as staged:
        staged.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
