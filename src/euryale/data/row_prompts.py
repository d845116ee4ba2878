"""Prompts cut from rows of text and conversations, for the base to answer.

A text gives openings: windows at regular distances, of which the base sees the first tokens and writes the rest. A
conversation gives its first question, through the chat template. The draw depends on the rows and the seed alone.
"""

import hashlib
import itertools
import random
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from euryale.data.bad_rows import BadRows
from euryale.data.rows import Message, Row
from euryale.data.tokens import bos_ids, prompt_ids
from euryale.errors import UserError

_STRIDE = 4  # a window is this many openings long: neighbours share no text
_POOL = 8  # openings gathered for each one wanted, before the draw; bounds what is read of an endless source
_MAX_SPARE = 100_000  # and what of it is held in memory


class Opening(NamedTuple):
    """Token ids for the base to go on from."""

    ids: list[int]
    key: str  # of the row it came from
    origin: str
    turns: tuple[Message, ...] = ()  # of a conversation: those that `ids` renders
    later: tuple[Message, ...] = ()  # and the questions that follow


def draw_openings(
    rows: Iterable[Row],
    tokenizer: PreTrainedTokenizerBase,
    count: int,
    num_tokens: int,
    seed: int,
    on_error: str = "stop",
) -> list[Opening]:
    """`count` openings (fewer when the rows hold no more), drawn by seed; of a text, at most `num_tokens` tokens.

    Raises UserError when the rows hold none at all, or for a conversation that the chat template refuses, unless
    on_error is skip.
    """
    pool: list[Opening] = []
    refused = BadRows(on_error)
    for opening in _openings(rows, tokenizer, num_tokens, refused):
        pool.append(opening)
        if len(pool) >= min(_POOL * count, count + _MAX_SPARE):
            break
    refused.report()
    if not pool:
        raise UserError(
            f"no prompt of {num_tokens} tokens could be cut from the data. Give longer texts, or fewer tokens."
        )
    random.Random(f"openings {seed}").shuffle(pool)
    return pool[:count]


def split_openings(openings: list[Opening], count: int) -> tuple[list[Opening], list[Opening]]:
    """Two lists of at most `count`, by a hash of the row: however many are drawn, a row stays on its side.

    Rows that all fall on one side are divided opening by opening instead.
    """
    sides: tuple[list[Opening], list[Opening]] = ([], [])
    for opening in openings:
        sides[hashlib.sha1(f"side {opening.key}".encode()).digest()[0] % 2].append(opening)
    if not sides[0] or not sides[1]:
        sides = (openings[0::2], openings[1::2])
    return sides[0][:count], sides[1][:count]


def _openings(
    rows: Iterable[Row], tokenizer: PreTrainedTokenizerBase, num_tokens: int, refused: BadRows
) -> Iterator[Opening]:
    begin = bos_ids(tokenizer)
    length = max(1, num_tokens - len(begin))
    for row in rows:
        if row.ids is not None:  # what a base wrote, which may carry its text as well: the same prompt again
            if row.num_prompt:
                yield Opening(list(row.ids[: row.num_prompt]), row.key, row.origin)
        elif row.text is not None:
            ids = tokenizer(row.text, add_special_tokens=False, verbose=False)["input_ids"]
            # The last window is used when at least half of it is there.
            for start in range(0, max(1, len(ids) - length * _STRIDE // 2), length * _STRIDE):
                if window := ids[start : start + length]:
                    yield Opening([*begin, *window], row.key, row.origin)
        elif row.messages is not None and (question := _until_answer(row.messages)):
            try:
                ids = prompt_ids(None, question, tokenizer, row.origin)
            except UserError as problem:
                refused.meet(problem)
            else:
                later = tuple(turn for turn in row.messages[len(question) :] if turn.role == "user")
                yield Opening(ids, row.key, row.origin, question, later)


def _until_answer(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The turns before the first answer; () when they hold no question."""
    turns = tuple(itertools.takewhile(lambda turn: turn.role != "assistant", messages))
    return turns if any(turn.role == "user" for turn in turns) else ()
