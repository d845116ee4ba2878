"""What is a row of data, and which shapes of records become one?

A record is what a file or the hub holds: a mapping of column names to values. A `Row` is what the rest of the package
sees: running text, a conversation, or token ids that the base wrote. These shapes of records are accepted:

    {"text": "..."}                                                     running text
    {"messages": [{"role": "user", "content": "..."}, ...]}             a conversation
    {"conversations": [{"from": "human", "value": "..."}, ...]}         a conversation, ShareGPT's names
    {"data": ["...", "..."]}                                            a conversation, UltraChat's raw form
    {"prompt": "..."}                                                   a question for the base to answer
    {"prompt": "...", "response": "..."}                                one turn; also question / answer,
                                                                        instruction [+ input] / output, ...
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from euryale.errors import UserError

PROMPT_KEYS = ("prompt", "instruction", "question")
RESPONSE_KEYS = ("response", "output", "answer", "completion", "canonical_solution")
ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool",
}  # fmt: skip
ACCEPTED = (
    "text | messages | conversations | one of "
    f"{'/'.join(PROMPT_KEYS)} with one of {'/'.join(RESPONSE_KEYS)} | another column named by data.column"
)


class Message(NamedTuple):
    """One turn; `role` is system, user, assistant or tool."""

    role: str
    content: str


@dataclass(frozen=True)
class Row:
    """One item of training data: exactly one of `text`, `messages` and `ids` says what it is.

    `ids` is text that the base wrote; its first `num_prompt` tokens were given and carry no loss. Such a row may
    also hold the `text`. `key` decides on which side of the held-out split the row stands, so rows that come from
    one original share it. `origin` is for messages to people: "file:line".
    """

    key: str
    origin: str
    text: str | None = None
    messages: tuple[Message, ...] | None = None
    ids: tuple[int, ...] | None = None
    num_prompt: int = 0
    spans: tuple[int, ...] = ()  # start and end of each answer in `ids`, where there are several


class Source(Protocol):
    """Rows with an exact cursor.

    Iterating gives what is left of the current pass; when it ends, the cursor stands at the start of the next pass.
    `state_dict()` is the cursor behind the last row that was given (JSON types only); a new source of the same
    settings that loads it gives exactly the remaining rows. `num_skipped` counts bad rows (on_error: skip).
    """

    @property
    def num_skipped(self) -> int: ...
    def __iter__(self) -> Iterator[Row]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def is_held_out(key: str, one_in: int) -> bool:
    """One row in `one_in`, by a hash that is the same on every machine; 0 holds nothing out."""
    return one_in > 0 and int(hashlib.sha1(key.encode()).hexdigest(), 16) % one_in == 0


def row_from_text(text: str, origin: str) -> Row:
    """Its key is a hash of its content, so that copies of one text never stand on both sides of the split."""
    return Row(key=_content_key([text], origin), origin=origin, text=text)


def row_from_record(record: object, origin: str, column: str | None = None) -> Row:
    """A record in one of the shapes above, or with its text (or messages) in `column`; else UserError."""
    if not isinstance(record, Mapping):
        raise UserError(f"{origin}: a row is a JSON object, found {type(record).__name__}. Accepted: {ACCEPTED}")
    if column is not None:
        if column not in record:
            raise UserError(f"{origin}: data.column={column} asked for a column that is not there: {_keys(record)}")
        value = record[column]
        if isinstance(value, list):
            return _conversation(value, f"{origin}: {column}", origin)
        return row_from_text(_string(value, column, origin), origin)
    for name in ("messages", "conversations"):
        if record.get(name) is not None:
            return _conversation(record[name], f"{origin}: {name}", origin)
    if isinstance(talk := record.get("data"), list) and len(talk) > 1 and all(isinstance(t, str) for t in talk):
        turns = tuple(Message(("user", "assistant")[i % 2], text) for i, text in enumerate(talk))
        return Row(key=_content_key(talk, origin), origin=origin, messages=turns)
    prompt, response = prompt_and_response(record, origin)
    if prompt is not None and response is not None:
        turns = (Message("user", prompt), Message("assistant", response))
        return Row(key=_content_key([prompt, response], origin), origin=origin, messages=turns)
    if prompt is not None and "text" not in record:  # to be answered by the base; alone it teaches nothing
        return Row(key=_content_key([prompt], origin), origin=origin, messages=(Message("user", prompt),))
    if "text" in record:
        return row_from_text(_string(record["text"], "text", origin), origin)
    raise UserError(f"{origin}: no text in this row. {_keys(record)}. Accepted: {ACCEPTED}")


def prompt_and_response(record: Mapping[str, object], origin: str) -> tuple[str | None, str | None]:
    """The two halves of a prompt/response record; a half that is not there is None.

    An instruction's `input` is put under it. A self-instruct seed task keeps both in its first of `instances`.
    """
    if isinstance(instances := record.get("instances"), list) and instances and isinstance(instances[0], Mapping):
        record = {**record, **instances[0]}
    prompt = next((record[key] for key in PROMPT_KEYS if isinstance(record.get(key), str)), None)
    response = next((record[key] for key in RESPONSE_KEYS if isinstance(record.get(key), str)), None)
    if isinstance(prompt, str) and isinstance(extra := record.get("input"), str) and extra.strip():
        prompt = f"{prompt}\n\n{extra}"
    return (
        None if prompt is None else _string(prompt, "prompt", origin),
        None if response is None else _string(response, "response", origin),
    )


def read_messages(value: object, where: str) -> tuple[Message, ...]:
    """A list of {role, content} or {from, value} turns, roles in our words; UserError names `where`."""
    if not isinstance(value, list) or not value:
        raise UserError(f"{where} must be a list of turns, found {_shown(value)}")
    messages = []
    for number, turn in enumerate(value, start=1):
        if not isinstance(turn, Mapping):
            raise UserError(f"{where}: turn {number} must be an object with role and content, found {_shown(turn)}")
        role = turn.get("role", turn.get("from"))
        if not isinstance(role, str) or role.lower() not in ROLES:
            raise UserError(f"{where}: turn {number} has the role {role!r}. Known roles: {', '.join(ROLES)}")
        content = turn.get("content", turn.get("value"))
        if isinstance(content, list):  # OpenAI's list of parts
            content = "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
        if not isinstance(content, str):
            raise UserError(f"{where}: turn {number} has no text: {_keys(turn)}. Accepted: content or value")
        messages.append(Message(ROLES[role.lower()], content))
    return tuple(messages)


def encode(text: str, origin: str) -> bytes:
    """UTF-8; UserError for undecodable bytes of a file or half a surrogate pair in JSON, which no tokenizer takes."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{origin}: the text is not valid Unicode (UTF-8) at character {error.start}") from error


def _conversation(value: object, where: str, origin: str) -> Row:
    messages = read_messages(value, where)
    return Row(key=_content_key([part for turn in messages for part in turn], origin), origin=origin, messages=messages)


def _string(value: object, name: str, origin: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{origin}: {name} must be text, found {_shown(value)}")
    return value


def _content_key(parts: list[str], origin: str) -> str:
    digest = hashlib.sha1()
    for part in parts:
        digest.update(encode(part, origin) + b"\0")
    return digest.hexdigest()


def _keys(record: Mapping[str, object]) -> str:
    return f"Its keys: {', '.join(map(str, record)) or '(none)'}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
