"""How does a row become token ids, and which of them may carry loss?

    running text      [bos] text [eos]          every token is a target; bos where the tokenizer puts one
    conversation      the chat template         only what the assistant said, with the end-of-turn token behind it
    prompt, response  without a chat template   [bos] prompt response [eos]; the response and eos are targets; where
                                                neither side has white space at the seam, the response gets a newline
    conversation      without a chat template   "role: content" lines; the assistant's content and the line's end, and
                                                eos at the very end
    ids               what the base wrote       as it is; all behind the first num_prompt are targets

The assistant's words are found by rendering the template once more with a mark behind each of its turns, not by
searching for the text (it may occur twice) nor by rendering a shorter conversation (some templates, Qwen3's among them,
render the last turn in another way than the same turn in the middle).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from jinja2 import TemplateError

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


def tokenize_row(row: Row, tokenizer: PreTrainedTokenizerBase) -> Sample:
    """UserError when the tokenizer's chat template refuses the conversation."""
    if row.ids is not None:
        ids, is_target = list(row.ids), [position >= row.num_prompt for position in range(len(row.ids))]
        for end, start in zip(row.spans[1:-1:2], row.spans[2::2], strict=True):
            is_target[end:start] = [False] * (start - end)
    elif row.messages is None:
        assert row.text is not None, f"{row.origin}: a row without text, messages or ids"
        ids = [*bos_ids(tokenizer), *_encode(row.text, tokenizer), *_eos_ids(tokenizer)] if row.text.strip() else []
        is_target = [True] * len(ids)
    elif tokenizer.chat_template:
        ids, is_target = _from_template(row.messages, tokenizer, row.origin)
    else:
        ids, is_target = _from_plain(row.messages, tokenizer)
    return Sample(ids, is_target, row.key, row.origin)


def prompt_ids(
    text: str | None, messages: tuple[Message, ...] | None, tokenizer: PreTrainedTokenizerBase, origin: str = "prompt"
) -> list[int]:
    """The ids that an answer is generated behind: what `tokenize_row` puts before the response of the same prompt."""
    if messages is None:
        assert text is not None, "a prompt has text or messages"
        return [*bos_ids(tokenizer), *_encode(text, tokenizer)]
    if tokenizer.chat_template:
        rendered = _render(list(messages), tokenizer, origin, add_generation_prompt=True)
        return _encode(rendered, tokenizer)
    if len(messages) == 1:
        return [*bos_ids(tokenizer), *_encode(messages[0].content, tokenizer)]
    lines = "".join(f"{turn.role}: {turn.content}\n" for turn in messages)
    return [*bos_ids(tokenizer), *_encode(f"{lines}assistant:", tokenizer)]


def bos_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """[bos] where the tokenizer itself begins a text with it, else [] (a tokenizer may know a bos and not use it)."""
    if tokenizer.bos_token_id is None:
        return []
    return [tokenizer.bos_token_id] if tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id] else []


def _eos_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]


def _encode(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    # verbose=False: a text longer than the context is cut into blocks later and needs no warning.
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def _from_plain(messages: tuple[Message, ...], tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[bool]]:
    if [turn.role for turn in messages] == ["user", "assistant"]:
        prompt, response = messages[0].content, messages[1].content
        if prompt and response and not prompt[-1].isspace() and not response[0].isspace():
            response = f"\n{response}"
        pieces = [(prompt, False), (response, True)]
    else:
        pieces = []
        for turn in messages:
            is_answer = turn.role == "assistant"
            pieces += [(f"{turn.role}:", False), (f" {turn.content}\n", is_answer)]
    ids, is_target = bos_ids(tokenizer), [False] * len(bos_ids(tokenizer))
    for text, is_answer in pieces:
        piece = _encode(text, tokenizer)
        ids += piece
        is_target += [is_answer] * len(piece)
    eos = _eos_ids(tokenizer)
    return ids + eos, is_target + [messages[-1].role == "assistant"] * len(eos)


def _from_template(
    messages: tuple[Message, ...], tokenizer: PreTrainedTokenizerBase, origin: str
) -> tuple[list[int], list[bool]]:
    # Stripped, as most templates strip: the mark would keep a template from doing it.
    turns = [Message(turn.role, turn.content.strip()) if turn.role == "assistant" else turn for turn in messages]
    marked = [
        Message(turn.role, f"{turn.content}\ue0a0{number}\ue0a1") if turn.role == "assistant" and turn.content else turn
        for number, turn in enumerate(turns)
    ]
    text, ends = _remove_marks(_render(marked, tokenizer, origin))
    if text != _render(turns, tokenizer, origin):
        raise UserError(
            f"{origin}: the chat template of this tokenizer changes what the assistant said, so it cannot be told "
            "which tokens to learn. Take another tokenizer.chat_template, or rows of text"
        )
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, offsets = list(encoding["input_ids"]), encoding["offset_mapping"]
    special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    is_target = [False] * len(ids)
    for number, end in ends.items():
        start = end - _num_rendered(turns[number].content, text[:end])
        for index, (first, last) in enumerate(offsets):
            is_target[index] |= first < end and start < last  # a token that touches the content holds some of it
        _add_end_of_turn(is_target, ids, offsets, special, text, end)
    return ids, is_target


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
    behind = next((index for index, (_, last) in enumerate(offsets) if last > end), len(ids))
    for index in range(behind, len(ids)):
        first, last = offsets[index]
        if ids[index] in special:
            is_target[behind : index + 1] = [True] * (index + 1 - behind)
            return
        if text[max(first, end) : last].strip():
            return


def _render(
    messages: list[Message], tokenizer: PreTrainedTokenizerBase, origin: str, add_generation_prompt: bool = False
) -> str:
    conversation = [turn._asdict() for turn in messages]
    try:
        rendered = tokenizer.apply_chat_template(
            conversation, tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except TemplateError as error:
        roles = ", ".join(turn.role for turn in messages)
        raise UserError(
            f"{origin}: the tokenizer's chat template refuses this conversation ({error}); its roles: {roles}. "
            "Mend the row, or set data.on_error=skip"
        ) from error
    return str(rendered)
