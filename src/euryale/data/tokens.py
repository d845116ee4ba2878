"""Rows as token ids, and which of the tokens may carry loss.

    running text      [bos] text [eos]          every token is a target; bos where the tokenizer puts one
    conversation      the chat template         only what the assistant said, with the end-of-turn token after it
    prompt, response  without a chat template   [bos] prompt response [eos]; the response and eos are targets; where
                                                neither side has white space at the seam, the response gets a newline
    conversation      without a chat template   "role: content" lines; the assistant's content and the line's end, and
                                                eos at the very end
    ids               what the base wrote       as it is; all after the first num_prompt are targets

A turn with a weight of 0 and an answer without words teach nothing. A text is encoded as a whole, whatever it is made
of: a token that is merged across the seam of prompt and answer is a target, as it holds some of the answer.

The assistant's words are found by rendering the template once more with a mark after each of its turns, not by
searching for the text (it may occur twice) nor by rendering a shorter conversation (some templates, Qwen3's among them,
render the last turn in another way than the same turn in the middle).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from euryale.data.chat_template import chat_template, render_chat
from euryale.data.rows import Message, Row
from euryale.errors import UserError

if TYPE_CHECKING:  # transformers takes seconds to import and is only named in signatures here
    from transformers import PreTrainedTokenizerBase

_MARK = re.compile("\ue0a0(\\d+)\ue0a1")  # private-use characters around a number: no template strips or escapes them


class Sample(NamedTuple):
    """A row in tokens. `is_target[i]` says that `ids[i]` may be a label: the token whose prediction is scored."""

    ids: list[int]
    is_target: list[bool]
    key: str
    origin: str


class _Encoded(NamedTuple):
    """A text in tokens, and the characters [first, last) that each token stands for."""

    ids: list[int]
    offsets: list[tuple[int, int]]


def tokenize_row(row: Row, tokenizer: PreTrainedTokenizerBase) -> Sample:
    """Raises UserError when the tokenizer's chat template refuses the conversation."""
    if row.ids is not None:
        ids, is_target = list(row.ids), [position >= row.num_prompt for position in range(len(row.ids))]
        for end, start in zip(row.spans[1:-1:2], row.spans[2::2], strict=True):
            is_target[end:start] = [False] * (start - end)
    elif row.messages is None:
        assert row.text is not None, f"{row.origin}: a row without text, messages or ids"
        ids = [*prompt_ids(row.text, None, tokenizer), *_eos_ids(tokenizer)] if row.text.strip() else []
        is_target = [True] * len(ids)
    elif chat_template(tokenizer):
        ids, is_target = _from_template(row.messages, tokenizer, row.origin)
    else:
        ids, is_target = _from_plain(row.messages, tokenizer)
    return Sample(ids, is_target, row.key, row.origin)


def check_ids(sample: Sample, vocab_size: int) -> None:
    """Raises UserError for a row with tokens that the base has no row of its matrices for."""
    wrong = [token for token in sample.ids if not 0 <= token < vocab_size]
    if wrong:
        raise UserError(
            f"{sample.origin}: holds the token id {wrong[0]}, and the base knows 0 to {vocab_size - 1}: its tokenizer "
            "has tokens that were added after the model was made. Take them out of the row or the chat template"
        )


def prompt_ids(
    text: str | None, messages: tuple[Message, ...] | None, tokenizer: PreTrainedTokenizerBase, origin: str = "prompt"
) -> list[int]:
    """The ids that an answer is generated after: what `tokenize_row` puts before the response of the same prompt.

    Raises UserError when the tokenizer's chat template refuses the messages.
    """
    if messages is not None and chat_template(tokenizer):
        return _encode(render_chat(messages, tokenizer, origin), tokenizer)
    if messages is not None:
        text = "".join(f"{turn.role}: {turn.content}\n" for turn in messages) + "assistant:"
        text = messages[0].content if len(messages) == 1 else text
    assert text is not None, "a prompt has text or messages"
    ids = _encode(text, tokenizer)
    return [*_missing_bos(ids, tokenizer), *ids]


def _missing_bos(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What has to come before a text: nothing where it is written out already, as in a template's text."""
    begin = bos_ids(tokenizer)
    return [] if ids[: len(begin)] == begin else begin


def bos_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer itself begins a text with: mostly [bos] or nothing (one may know a bos and not use it)."""
    whole, bare = tokenizer("a")["input_ids"], _encode("a", tokenizer)
    if not bare:  # no token for this letter
        return [token for token in whole[:1] if token == tokenizer.bos_token_id]
    starts = (start for start in range(len(whole)) if whole[start : start + len(bare)] == bare)
    return list(whole[: next(starts, 0)])


def _eos_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]


def _encode(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    # verbose=False: a text longer than the context is cut into blocks later and needs no warning.
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def _encode_with_offsets(text: str, tokenizer: PreTrainedTokenizerBase, seams: list[int]) -> _Encoded:
    """The tokens and their characters. A tokenizer written in Python does not tell these: each of its tokens is taken
    to reach from one of the `seams` (character positions) to the next, told apart by encoding the text up to there."""
    if tokenizer.is_fast:
        encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return _Encoded(list(encoding["input_ids"]), encoding["offset_mapping"])
    ids = _encode(text, tokenizer)
    offsets: list[tuple[int, int]] = []
    for start, end in zip([0, *seams], [*seams, len(text)], strict=True):
        before = ids if end == len(text) else _encode(text[:end], tokenizer)
        different = (i for i, (a, b) in enumerate(zip(ids, before, strict=False)) if a != b)
        shared = next(different, min(len(ids), len(before)))
        offsets += [(start, end)] * (shared - len(offsets))
    return _Encoded(ids, offsets)


def _from_plain(messages: tuple[Message, ...], tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[bool]]:
    if [turn.role for turn in messages] == ["user", "assistant"]:
        prompt, response = messages[0].content, messages[1].content
        if prompt and response and not prompt[-1].isspace() and not response[0].isspace():
            response = f"\n{response}"
        pieces = [(prompt, False), (response, messages[1].is_learned)]
    else:
        pieces = []
        for turn in messages:
            pieces += [(f"{turn.role}:", False), (f" {turn.content}\n", turn.is_learned)]
    text, spans = "", []
    for piece, is_learned in pieces:
        if is_learned:
            spans.append((len(text), len(text) + len(piece)))
        text += piece
    encoded = _encode_with_offsets(text, tokenizer, [seam for span in spans for seam in span])
    is_target = _touched(encoded.offsets, spans)
    begin, eos = _missing_bos(encoded.ids, tokenizer), _eos_ids(tokenizer)
    return (
        [*begin, *encoded.ids, *eos],
        [*[False] * len(begin), *is_target, *[messages[-1].is_learned] * len(eos)],
    )


def _touched(offsets: list[tuple[int, int]], spans: list[tuple[int, int]]) -> list[bool]:
    """Whether each token holds some of one of the spans of characters."""
    return [any(first < end and start < last for start, end in spans) for first, last in offsets]


def _from_template(
    messages: tuple[Message, ...], tokenizer: PreTrainedTokenizerBase, origin: str
) -> tuple[list[int], list[bool]]:
    turns, text, ends = _render_marked(messages, tokenizer, origin)
    spans = [(end - _num_rendered(turns[number].content, text[:end]), end) for number, end in ends.items()]
    seams = sorted({seam for span in spans for seam in span})
    ids, offsets = _encode_with_offsets(text, tokenizer, seams)
    special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    is_target = _touched(offsets, spans)
    for end in ends.values():
        _add_end_of_turn(is_target, ids, offsets, special, text, end)
    return ids, is_target


def _render_marked(
    messages: tuple[Message, ...], tokenizer: PreTrainedTokenizerBase, origin: str
) -> tuple[list[Message], str, dict[int, int]]:
    """The turns, the text that they are rendered to, and where each one that is learned ends in it.

    A template that strips what the assistant said would not do so before a mark: the turns are then stripped here.
    """
    stripped = [turn._replace(content=turn.content.strip() if turn.role == "assistant" else turn.content)
                for turn in messages]  # fmt: skip
    for turns in (list(messages), stripped):
        marked = [
            turn._replace(content=f"{turn.content}\ue0a0{number}\ue0a1") if turn.is_learned else turn
            for number, turn in enumerate(turns)
        ]
        text, ends = _remove_marks(render_chat(marked, tokenizer, origin, add_generation_prompt=False))
        if text == render_chat(turns, tokenizer, origin, add_generation_prompt=False):
            return turns, text, ends
    raise UserError(
        f"{origin}: the tokenizer's chat template must render what the assistant said as it is; it changes it, so that "
        "it cannot be told which tokens to learn. Take another tokenizer.chat_template, or rows of text."
    )


def _remove_marks(rendered: str) -> tuple[str, dict[int, int]]:
    """The text without marks, and where the turn of each number ends in it."""
    pieces, ends = [], {}
    position = length = 0
    for mark in _MARK.finditer(rendered):
        pieces.append(rendered[position : mark.start()])
        length += len(pieces[-1])
        position = mark.end()
        ends[int(mark.group(1))] = length
    return "".join([*pieces, rendered[position:]]), ends


def _num_rendered(content: str, before: str) -> int:
    """How many characters of `content` stand at the end of `before`: all, or fewer where a template leaves out its
    beginning (the thoughts in earlier turns, for Qwen3)."""
    if before.endswith(content):
        return len(content)
    count = 0
    while count < len(content) and before.endswith(content[len(content) - count - 1 :]):
        count += 1
    return len(content[len(content) - count :].lstrip())


def _add_end_of_turn(
    is_target: list[bool], ids: list[int], offsets: list[tuple[int, int]], special: set[int], text: str, end: int
) -> None:
    """Marks the special token that follows the content at `end`, with the white space between them; none may follow."""
    after = next((index for index, (_, last) in enumerate(offsets) if last > end), len(ids))
    for index in range(after, len(ids)):
        first, last = offsets[index]
        if ids[index] in special:
            is_target[after : index + 1] = [True] * (index + 1 - after)
            return
        if text[max(first, end) : last].strip():
            return
