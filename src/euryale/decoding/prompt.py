"""What callers pass as prompts, as token ids.

    one prompt     a text | token ids: a list, an array or a tensor | a conversation: a list of {role, content} |
                   a mapping with input_ids (and attention_mask), as tokenizers return it
    several        a list of these | a two-dimensional array or tensor | a mapping with several rows of input_ids

A text is encoded as the tokenizer begins it, without what it would end it with: an answer goes on from there.
A conversation goes through the tokenizer's chat template. Anything else is refused by the name of its type: what was
not understood would be answered all the same.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from euryale.base.base import Base
from euryale.data.rows import Message, read_messages
from euryale.data.rows import encode as check_unicode
from euryale.data.tokens import prompt_ids
from euryale.decoding.numbers import is_id, is_list, shown, to_list
from euryale.errors import UserError

Ids = Sequence[int] | np.ndarray | Tensor
Conversation = Sequence[Mapping[str, object]] | Sequence[Message]
Prompt = str | Ids | Conversation | Mapping[str, object]
Prompts = Prompt | Sequence[Prompt]

_ACCEPTED = "Give a text, token ids, a list of {role, content}, a tokenizer's output with input_ids, or a list of these"
# What a tokenizer puts alongside the ids and what changes nothing for a text alone.
_KEYS = {"input_ids", "attention_mask", "token_type_ids", "special_tokens_mask", "offset_mapping", "length", "labels",
         "assistant_masks", "overflow_to_sample_mapping", "num_truncated_tokens"}  # fmt: skip


def encode_all(base: Base, prompts: object) -> list[list[int]]:
    """Prompts -> token ids of each; one prompt is a list of one. Raises UserError for what is not a prompt."""
    rows = _rows_of(prompts)
    if rows is None:
        rows = list(prompts) if is_list(prompts) and not _is_one(prompts) else [prompts]
    return [encode(base, row) for row in rows]


def encode(base: Base, prompt: object) -> list[int]:
    """One prompt -> token ids. Raises UserError for what is not one prompt of this base."""
    rows = _rows_of(prompt)
    if rows is not None:
        if len(rows) != 1:
            raise UserError(f"a prompt must be one row of ids; got {len(rows)}. Use generate for several.")
        prompt = rows[0]
    if isinstance(prompt, str):
        check_unicode(prompt, "prompt")
        ids = prompt_ids(str(prompt), None, base.tokenizer)
    elif is_list(prompt) and _is_conversation(prompt):
        ids = prompt_ids(None, _read_conversation(prompt), base.tokenizer)
    elif is_list(prompt):
        ids = [_one_id(token) for token in prompt]
    else:
        raise UserError(f"a prompt must be text, token ids or a conversation; got {_named(prompt)}. {_ACCEPTED}.")
    if not ids and base.bos_id is not None:
        ids = [base.bos_id]
    if not ids:
        raise UserError("the prompt is empty and this base has no begin-of-text token. Give at least one token.")
    if not 0 <= min(ids) <= max(ids) < base.vocab_size:
        raise UserError(
            f"the prompt must hold token ids of {base.path}, 0 to {base.vocab_size - 1}; got {min(ids)} to {max(ids)}. "
            "Give ids of this base, or text and the tokenizer that belongs to it."
        )
    return ids


def _rows_of(value: object) -> list[object] | None:
    """The rows of an array, a tensor or a mapping, one of which may have one dimension; None for anything else."""
    if isinstance(value, Mapping):
        return _rows_of_mapping(value)
    if not isinstance(value, (Tensor, np.ndarray)):
        return None
    if value.ndim not in (1, 2):
        raise UserError(f"a prompt must have one dimension, and several prompts two; got {value.ndim} of them.")
    ids = to_list("a prompt", value)
    assert isinstance(ids, list)
    return ids if value.ndim == 2 else [ids]


def _rows_of_mapping(value: Mapping[str, object]) -> list[object]:
    """Rows of input_ids without what attention_mask hides at their ends."""
    if unknown := [str(key) for key in value if key not in _KEYS]:
        is_turn = "role" in value and "content" in value
        advice = (
            "Give a list of turns, not one." if is_turn else "Give input_ids, and attention_mask where they are padded."
        )
        raise UserError(f"a prompt that is a mapping must hold input_ids alone; got {', '.join(unknown)}. {advice}")
    if "input_ids" not in value:
        raise UserError(f"a prompt that is a mapping must hold input_ids; got {', '.join(value) or 'an empty one'}.")
    rows = _table("input_ids", value["input_ids"])
    mask = value.get("attention_mask")
    if mask is None:
        return list(rows)
    masks = _table("attention_mask", mask)
    if [len(row) for row in masks] != [len(row) for row in rows]:
        raise UserError("attention_mask must have the shape of input_ids; got another.")
    return [_unpadded(row, shows) for row, shows in zip(rows, masks, strict=True)]


def _table(name: str, value: object) -> list[list[object]]:
    """One row or several -> rows."""
    if name == "attention_mask" and isinstance(value, (Tensor, np.ndarray)):
        value = value.tolist()  # of any dtype: what counts is which are 0
    value = to_list(name, value)
    if not is_list(value):
        raise UserError(f"{name} must be a row of ids, or rows of ids; got {_named(value)}.")
    rows = [to_list(name, row) for row in value]
    tables = [list(row) for row in rows if is_list(row)]
    if tables and len(tables) < len(rows):
        raise UserError(f"{name} must be a row of ids, or rows of ids; got both.")
    return tables or [rows]


def _unpadded(row: list[object], shows: list[object]) -> list[object]:
    """The ids between the padding at the ends."""
    if any(value not in (0, 1) for value in shows):
        raise UserError("attention_mask must be 0 or 1 everywhere; got other numbers.")
    kept = [place for place, value in enumerate(shows) if value]
    if not kept:
        raise UserError("attention_mask must show at least one token of each prompt; got a row of zeros.")
    if len(kept) != kept[-1] - kept[0] + 1:
        raise UserError("attention_mask may hide tokens at the ends of a prompt alone; got a gap between tokens.")
    return row[kept[0] : kept[-1] + 1]


def _is_one(value: Sequence[object]) -> bool:
    """Whether this list is one prompt: ids or turns. An empty one is no prompt at all."""
    first = value[0] if len(value) else None
    is_number = is_id(first) or isinstance(first, (bool, float, np.generic)) and not isinstance(first, str)
    return is_number or isinstance(first, (Tensor, np.ndarray)) and first.ndim == 0 or _is_conversation(value)


def _is_conversation(value: Sequence[object]) -> bool:
    first = value[0] if len(value) else None
    is_turn = isinstance(first, Mapping) and "input_ids" not in first and bool({"role", "from", "content"} & set(first))
    return is_turn or isinstance(first, Message)


def _read_conversation(turns: Sequence[object]) -> tuple[Message, ...]:
    """Raises UserError for what is not a turn of text."""
    messages = tuple(turn for turn in turns if isinstance(turn, Message))
    if len(messages) == len(turns):
        return messages
    messages = read_messages(list(turns), "prompt")
    for turn in messages:
        check_unicode(turn.content, "prompt")
    return messages


def _one_id(token: object) -> int:
    token = to_list("a prompt", token)
    if not is_id(token):
        raise UserError(f"token ids of a prompt must be whole numbers; got {_named(token)}. {_ACCEPTED}.")
    return int(token)


def _named(value: object) -> str:
    """A list by what it holds, anything else as in other messages."""
    if is_list(value) and len(value):
        return f"{type(value).__name__} of {type(value[0]).__name__}"
    return shown(value) if not isinstance(value, (bytes, bytearray)) else type(value).__name__
