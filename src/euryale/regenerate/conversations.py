"""Conversations that the base answers turn by turn, each after its own earlier answers.

A row goes on as long as the prompt of the next turn begins with the tokens that are there. Where the chat template
changes what was said before (Qwen3 leaves out earlier thoughts), the next turn begins a row of its own, so that a row
is always what the base has seen. An answer that was cut off ends its conversation.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from euryale.base.base import Base
from euryale.base.base_info import UnloadedBase
from euryale.data.row_prompts import Opening
from euryale.data.rows import Message
from euryale.data.tokens import prompt_ids
from euryale.errors import UserError
from euryale.regenerate.completions import Writer


@dataclass
class _Talk:
    opening: Opening
    seed: int
    ids: list[int]
    turns: list[Message]
    later: list[Message]
    spans: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)


def converse(
    writer: Writer,
    base: Base | UnloadedBase,
    openings: Sequence[Opening],
    new_tokens: int,
    temperature: float,
    seeds: Sequence[int],
    max_turns: int,
) -> list[dict[str, Any]]:
    """The records that answer these openings, one or more each, in their order; see parts.SCHEMA."""
    talks = [
        _Talk(o, seed, list(o.ids), list(o.turns), list(o.later[: max_turns - 1]))
        for o, seed in zip(openings, seeds, strict=True)
    ]
    records: list[list[dict[str, Any]]] = [[] for _ in talks]
    active = list(range(len(talks)))
    while active:
        asked = [talks[i] for i in active]
        answers = writer.write([t.ids for t in asked], new_tokens, temperature, [t.seed for t in asked])
        still = []
        for index, answer in zip(active, answers, strict=True):
            talk = talks[index]
            talk.spans += [len(talk.ids), len(talk.ids) + len(answer.ids)]
            talk.ids = talk.ids + answer.ids
            talk.texts.append(answer.text)
            prompt = _next_prompt(talk, answer.text, base, new_tokens) if answer.ends else None
            if prompt is None:
                records[index].append(_record(talk, temperature))
                continue
            if prompt[: len(talk.ids)] != talk.ids:
                records[index].append(_record(talk, temperature))
                talk.spans, talk.texts = [], []
            talk.ids = prompt
            still.append(index)
        active = still
    return [record for found in records for record in found]


def _next_prompt(talk: _Talk, answer: str, base: Base | UnloadedBase, new_tokens: int) -> list[int] | None:
    """What the base is asked next; None when nothing is left to ask, or no room to answer."""
    if not talk.later:
        return None
    talk.turns += [Message("assistant", answer), talk.later.pop(0)]
    try:
        ids = prompt_ids(None, tuple(talk.turns), base.tokenizer, talk.opening.origin)
    except UserError:  # a template that takes one question but not this conversation: what is there is whole
        return None
    return ids if len(ids) + new_tokens <= base.max_length else None


def _record(talk: _Talk, temperature: float) -> dict[str, Any]:
    return {
        "ids": talk.ids,
        "num_prompt": talk.spans[0],
        "spans": talk.spans if len(talk.spans) > 2 else [],
        "key": talk.opening.key,
        "origin": talk.opening.origin,
        "text": "\n".join(talk.texts),
        "seed": talk.seed,
        "temperature": temperature,
    }
