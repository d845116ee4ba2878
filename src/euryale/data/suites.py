"""Suites of prompts that results are compared on, each read from its authors' file and checked to be that file.

    breadth      64 prompts of eight kinds, bundled (data/breadth.jsonl): how heads do away from their training text
    context      64 questions after prose and code of 1,000 to 24,000 characters, bundled (context_suite.py)
    spec_bench   480 questions of six tasks (Xia et al. 2024); its 80 of MT-Bench have two turns
    mt_bench     80 two-turn questions of eight categories (Zheng et al. 2023)
    humaneval    164 Python functions to complete (Chen et al. 2021)
    gsm8k        1,319 school problems, the test half (Cobbe et al. 2021)

The files of the published suites are their authors'; they are read as they are published, and none is downloaded.
"""

import re
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

from euryale.data import context_suite
from euryale.data.prompt_files import read_prompts
from euryale.data.records import read_records
from euryale.errors import UserError, check_option
from euryale.system.paths import PROJECT

BREADTH = ("chat", "prose", "code", "maths", "extraction", "translation", "summaries", "questions")
CONTEXT = "context"
_NUMBER = re.compile(r"(?:(?<!\w)-)?\d[\d,]*(?:\.\d+)?", re.ASCII)  # the hyphen of 10-18 is no sign
_MT_BENCH = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")


class Suite(NamedTuple):
    """How its file is known, and how its questions are divided into tasks."""

    fields: tuple[str, ...]  # every record has these
    origin: str  # where a user finds the file
    tasks: Mapping[str, str] | None = None  # category of a record -> task; None: the suite is one task
    bundled: Path | None = None  # its file, where it comes with the project
    is_scored: bool = False  # whether a record tells the right answer, as "#### 18" at the end of its field `answer`


SUITES: dict[str, Suite] = {
    "breadth": Suite(
        ("category", "question"),
        "data/breadth.jsonl of this project",
        {kind: kind for kind in BREADTH},
        PROJECT / "data" / "breadth.jsonl",
    ),
    "spec_bench": Suite(
        ("question_id", "category", "turns"),
        "data/spec_bench/question.jsonl of github.com/hemingkx/Spec-Bench",
        dict.fromkeys(_MT_BENCH, "mt_bench")
        | {task: task for task in ("translation", "summarization", "qa", "math_reasoning", "rag")},
    ),
    "mt_bench": Suite(
        ("question_id", "category", "turns"),
        "fastchat/llm_judge/data/mt_bench/question.jsonl of github.com/lm-sys/FastChat",
        {category: category for category in _MT_BENCH},
    ),
    "humaneval": Suite(
        ("task_id", "prompt", "entry_point", "test"), "data/HumanEval.jsonl.gz of github.com/openai/human-eval"
    ),
    "gsm8k": Suite(
        ("question", "answer"),
        "grade_school_math/data/test.jsonl of github.com/openai/grade-school-math",
        is_scored=True,
    ),
}


class Question(NamedTuple):
    """One record: a text to go on with, or what a user says turn by turn, to be answered each time."""

    task: str
    key: str
    text: str | None
    turns: tuple[str, ...]
    right: str | None = None  # the number that a right answer ends with; None: nothing here can tell


def read_suite(name: str, file: str | None) -> list[Question]:
    """All questions, task by task in the suite's order.

    Raises UserError: an unknown suite, no file, a file that is not the suite's.
    """
    if name == CONTEXT:
        return _context(file)
    check_option("suite", name, [*SUITES, CONTEXT])
    suite = SUITES[name]
    if file is None and suite.bundled is not None:
        file = str(suite.bundled)
    if file is None:
        raise UserError(f"suite={name} needs prompts=FILE, and nothing is downloaded: it is {suite.origin}.")
    tasks = list(dict.fromkeys(suite.tasks.values())) if suite.tasks else [name]
    found: dict[str, list[Question]] = {task: [] for task in tasks}
    for question in _questions(name, suite, file):
        found[question.task].append(question)
    missing = [task for task in tasks if not found[task]]
    if missing:
        raise _foreign(name, file, f"it has no question of {', '.join(missing)}")
    return [question for task in tasks for question in found[task]]


def _context(file: str | None) -> list[Question]:
    if file is not None:
        raise UserError(f"suite={CONTEXT} is bundled and takes no prompts=; got {file}. Leave one of the two out.")
    questions = [Question(task, key, None, (text,)) for task, key, text in context_suite.context_questions()]
    if not questions:
        raise UserError(
            f"suite={CONTEXT} is made of the project's own pages, which are not here. Run it in a checkout."
        )
    return questions


def _questions(name: str, suite: Suite, file: str) -> list[Question]:
    prompts = read_prompts(file)
    questions = []
    for record, prompt in zip(read_records(Path(file).expanduser()), prompts, strict=True):
        value = record.value
        if not isinstance(value, Mapping):
            raise _foreign(name, file, f"{record.origin} is not a record")
        lacks = [field for field in suite.fields if field not in value]
        if lacks:
            raise _foreign(name, file, f"{record.origin} has no {', '.join(lacks)}, only {', '.join(map(str, value))}")
        if suite.tasks is not None and prompt.category not in suite.tasks:
            raise _foreign(name, file, f"{record.origin} is of the category {prompt.category!r}")
        turns = tuple(message.content for message in prompt.messages or ())
        if "turns" in suite.fields:
            turns = _read_turns(value["turns"], record.origin)
        task = suite.tasks[prompt.category] if suite.tasks else name
        right = None
        if suite.is_scored:
            right = last_number(str(value["answer"]).rpartition("####")[2])
            if right is None:
                raise _foreign(name, file, f"{record.origin} has an answer without a number: {value['answer']!r}")
        questions.append(Question(task, prompt.key, prompt.text, turns, right))
    return questions


def last_number(text: str) -> str | None:
    """The last number in a text, without what only sets it apart: 1,000.00 is 1000. None where there is none."""
    numbers = _NUMBER.findall(text)
    return f"{Decimal(numbers[-1].replace(',', '')).normalize():f}" if numbers else None


def _read_turns(value: object, origin: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(turn, str) and turn for turn in value):
        raise UserError(f"{origin}: turns must be a list of questions; got {value!r}. Copy the file again.")
    return tuple(value)


def _foreign(name: str, file: str, reason: str) -> UserError:
    suite = SUITES[name]
    return UserError(
        f"suite={name}: prompts={file} is not its file: {reason}. It is {suite.origin}; for other prompts leave "
        "suite out."
    )
