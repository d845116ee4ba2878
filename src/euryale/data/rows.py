"""Rows of data, and the shapes of records that become one.

A record is what a file or the hub holds: a mapping of column names to values. A `Row` is what the rest of the package
sees: running text, a conversation, or token ids that the base wrote. These shapes of records are accepted:

    {"text": "..."}                                                     running text
    {"messages": [{"role": "user", "content": "..."}, ...]}             a conversation
    {"conversations": [{"from": "human", "value": "..."}, ...]}         a conversation, ShareGPT's names
    {"data": ["...", "..."]}                                            a conversation, UltraChat's raw form
    {"prompt": [turns], "completion": [turns]}                          a conversation of which only the end is learned
    {"prompt": "..."}                                                   a question for the base to answer
    {"prompt": "...", "response": "..."}                                one turn; also question / answer,
                                                                        instruction [+ input] / output, ...

All but text may also have a `system` text. A turn with "weight": 0 (or "train", "training" or "loss": false) is
read and not learned. What cannot be read (images, calls of tools, fractions of a weight) is refused, never left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from euryale.errors import UserError

PROMPT_KEYS = ("prompt", "instruction", "question")
RESPONSE_KEYS = ("response", "output", "answer", "completion", "canonical_solution")
SYSTEM_KEYS = ("system", "system_prompt", "system_message")
WEIGHT_KEYS = ("weight", "train", "training", "loss")  # OpenAI's, ShareGPT's, axolotl's, ms-swift's
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
    """One turn; `role` is system, user, assistant or tool, a `weight` of 0 keeps an answer from being learned."""

    role: str
    content: str
    weight: int = 1

    @property
    def is_learned(self) -> bool:
        """Whether it is an answer with words in it that carry loss."""
        return self.role == "assistant" and self.weight > 0 and bool(self.content.strip())


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
    `state_dict()` is the cursor after the last row that was given (JSON types only); a new source of the same
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
        raise UserError(f"{origin}: a row must be a JSON object; got {type(record).__name__}. Accepted: {ACCEPTED}")
    if column is not None:
        if column not in record:
            raise UserError(f"{origin}: data.column={column} must be a column of the row. {_keys(record)}")
        value = record[column]
        if isinstance(value, list):
            return _conversation(read_messages(value, f"{origin}: {column}"), record, origin)
        return row_from_text(_string(value, column, origin), origin)
    for name in ("messages", "conversations"):
        if record.get(name) is not None:
            return _conversation(read_messages(record[name], f"{origin}: {name}"), record, origin)
    if isinstance(record.get("prompt"), list):
        return _conversation(_prompt_and_completion(record, origin), record, origin)
    if isinstance(talk := record.get("data"), list) and len(talk) > 1 and all(isinstance(t, str) for t in talk):
        turns = tuple(Message(("user", "assistant")[i % 2], text) for i, text in enumerate(talk))
        return _conversation(turns, record, origin, talk)
    prompt, response = prompt_and_response(record, origin)
    if prompt is not None and response is not None:
        turns = (Message("user", prompt), Message("assistant", response))
        return _conversation(turns, record, origin, [prompt, response])
    if prompt is not None and "text" not in record:  # to be answered by the base; alone it teaches nothing
        return _conversation((Message("user", prompt),), record, origin, [prompt])
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
        raise UserError(f"{where} must be a list of turns; got {_shown(value)}.")
    messages = []
    for number, turn in enumerate(value, start=1):
        if not isinstance(turn, Mapping):
            raise UserError(f"{where}: turn {number} must be an object with role and content; got {_shown(turn)}.")
        role = turn.get("role", turn.get("from"))
        if not isinstance(role, str) or role.lower() not in ROLES:
            raise UserError(f"{where}: turn {number} must have one of the roles {', '.join(ROLES)}; got {role!r}.")
        for name in ("tool_calls", "function_call"):
            if turn.get(name):
                raise UserError(f"{where}: turn {number} must be text alone; got {name}, which is not read.")
        content = turn.get("content", turn.get("value"))
        if isinstance(content, list):  # OpenAI's list of parts
            content = "".join(_text_of_part(part, f"{where}: turn {number}") for part in content)
        if not isinstance(content, str):
            raise UserError(f"{where}: turn {number} must have a text in content or value; got {_keys(turn)}.")
        messages.append(Message(ROLES[role.lower()], content, _weight(turn, f"{where}: turn {number}")))
    return tuple(messages)


def with_system(messages: tuple[Message, ...], record: Mapping[str, object], origin: str) -> tuple[Message, ...]:
    """The turns after the system text that stands in a field of its own, where there is one."""
    texts = [_string(record[name], name, origin) for name in SYSTEM_KEYS if record.get(name) is not None]
    system = next((text for text in texts if text.strip()), None)
    if system is None or (messages[0].role == "system" and messages[0].content.strip() == system.strip()):
        return messages
    if messages[0].role == "system":
        raise UserError(f"{origin}: a row must have one system text; got one in a field and another in a turn.")
    return (Message("system", system), *messages)


def encode(text: str, origin: str) -> bytes:
    """UTF-8; UserError for undecodable bytes of a file or half a surrogate pair in JSON, which no tokenizer takes."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{origin}: the text must be valid Unicode (UTF-8); it is not at character {error.start}."
        ) from error


def _conversation(
    messages: tuple[Message, ...], record: Mapping[str, object], origin: str, content: list[str] | None = None
) -> Row:
    """`content`: what the key is a hash of; None: roles and texts of the turns."""
    content = content or [part for turn in messages for part in turn[:2]]
    return Row(_content_key(content, origin), origin, messages=with_system(messages, record, origin))


def _prompt_and_completion(record: Mapping[str, object], origin: str) -> tuple[Message, ...]:
    """Turns in two fields, as TRL has them: those of the prompt are not learned."""
    prompt = tuple(turn._replace(weight=0) for turn in read_messages(record["prompt"], f"{origin}: prompt"))
    completion = record.get("completion")
    return prompt if completion is None else (*prompt, *read_messages(completion, f"{origin}: completion"))


def _text_of_part(part: object, where: str) -> str:
    text = part.get("text") if isinstance(part, Mapping) else part
    kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
    if not isinstance(text, str) or kind not in ("text", "input_text", "output_text"):
        raise UserError(f"{where} must have parts of text alone; got {_shown(part)}.")
    return text


def _weight(turn: Mapping[str, object], where: str) -> int:
    for name in WEIGHT_KEYS:
        value = turn.get(name)
        if value is None:
            continue
        if not isinstance(value, (bool, int, float)) or value not in (0, 1):
            raise UserError(f"{where}: {name} must be 0 or 1 (false or true); got {_shown(value)}.")
        if not value:
            return 0
    return 1


def _string(value: object, name: str, origin: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{origin}: {name} must be text; got {_shown(value)}.")
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
