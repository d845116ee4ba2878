"""Prompts of a file, for generating, evaluating and benchmarking.

    .txt             one prompt a line
    .json            a list of records, or of strings
    .jsonl           a record a line; .gz may follow any of the three

A record is read by its first key among: prompt, text (plain text, continued as it is); turns (Spec-Bench, MT-Bench: the
first turn is asked), question, instruction [+ input], messages, conversations (asked through the chat template when the
base has one). Of a conversation everything before the first answer is the prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from euryale.data.records import read_records
from euryale.data.rows import Message, encode, prompt_and_response, read_messages, with_system
from euryale.errors import UserError, check_least
from euryale.system.paths import user_path

_KEYS = "prompt, text, turns, question, instruction, messages, conversations"
_SUFFIXES = (".txt", ".json", ".jsonl")


@dataclass(frozen=True)
class Prompt:
    """Exactly one of `text` and `messages` is there. `key` names it in reports, `category` groups it ("" for none)."""

    text: str | None
    messages: tuple[Message, ...] | None
    key: str
    category: str = ""


def read_prompts(path: str | Path, limit: int | None = None) -> list[Prompt]:
    """The first `limit` prompts of a file, in its order; UserError names the file and line of what is wrong."""
    file = user_path(str(path), "prompts")
    if file.exists() and not file.is_file():
        raise UserError(f"prompts={path} must be a file; got a folder, a pipe or a device. Write a file.")
    if not file.is_file():
        raise UserError(f"prompts={path}: there is no such file (looked in {Path.cwd()}). Bundled: data/prompts.txt")
    suffix = Path(file.name.lower().removesuffix(".gz")).suffix
    if suffix not in _SUFFIXES:
        raise UserError(f"prompts={path}: cannot read files ending in {suffix!r}. Known: {', '.join(_SUFFIXES)}")
    check_least(1, limit=limit)
    prompts = list(islice(_read(file, is_text=suffix == ".txt"), limit))
    if not prompts:
        raise UserError(f"prompts={path} holds no prompt. Write one a line (.txt) or one record a line (.jsonl)")
    return prompts


def _read(file: Path, is_text: bool) -> Iterator[Prompt]:
    for number, record in enumerate(read_records(file, separator="lines" if is_text else "auto"), start=1):
        if isinstance(record.value, UserError):
            raise record.value
        if isinstance(record.value, str):
            prompt = Prompt(record.value, None, key=str(number))
        else:
            prompt = _from_record(record.value, record.origin, number)
        encode("".join([prompt.text or "", *(turn.content for turn in prompt.messages or ())]), record.origin)
        yield prompt


def _from_record(record: object, origin: str, number: int) -> Prompt:
    if not isinstance(record, Mapping):
        raise UserError(f"{origin}: a prompt must be an object with one of {_KEYS}; got {type(record).__name__}")
    names = (record.get(name) for name in ("question_id", "task_id", "id"))
    key = str(next((name for name in names if name is not None), number))
    category = str(record.get("category") or "")
    for text in (record.get("prompt"), record.get("text")):
        if isinstance(text, str):
            return Prompt(text, None, key, category)
    return Prompt(None, with_system(_question(record, origin), record, origin), key, category)


def _question(record: Mapping[str, object], origin: str) -> tuple[Message, ...]:
    turns = record.get("turns")
    if isinstance(turns, list) and turns and isinstance(turns[0], str):
        return (Message("user", turns[0]),)
    question, _ = prompt_and_response(record, origin)
    if question is not None:
        return (Message("user", question),)
    for name in ("messages", "conversations"):
        if name in record:
            messages = list(read_messages(record[name], f"{origin}: {name}"))
            while messages and messages[0].role == "assistant":  # ShareGPT conversations may begin with an answer
                messages.pop(0)
            first_answer = next((i for i, turn in enumerate(messages) if turn.role == "assistant"), len(messages))
            if not any(turn.role == "user" for turn in messages[:first_answer]):
                raise UserError(f"{origin}: {name} must have a question before its first answer; got none.")
            return tuple(messages[:first_answer])
    raise UserError(f"{origin} holds no prompt. Its keys: {', '.join(map(str, record))}. Accepted: {_KEYS}")
