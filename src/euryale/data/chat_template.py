"""Chat prompts as the model's own template renders them: the one implementation for rows, prompts, engine and server.

Templates differ in what they take: one string for a turn or a list of parts, a system turn or none. A template that
loses what was said answers another question in silence, so each is tried on words that cannot be missed (one a turn,
once for every sequence of roles) and gets turns in the form in which it shows them all; where it has none, the
conversation is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from euryale.data.rows import Message
from euryale.errors import UserError

if TYPE_CHECKING:  # transformers takes seconds to import and is only named in signatures here
    from transformers import PreTrainedTokenizerBase

# What jinja raises, and what Python does inside of a template: a sum of text and number, a missing key, an index, a
# macro that calls itself for ever, a text without end.
TEMPLATE_ERRORS = (
    TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RuntimeError, MemoryError,
)  # fmt: skip
_ROLES_OF_PARTS = ((), ("user", "assistant", "system", "tool"), ("user",), ("user", "assistant"))


def chat_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The template that chats are rendered with; None for a tokenizer without one.

    Of several named ones it is `default`, or the only one. Raises UserError when none of several is the default.
    """
    templates = tokenizer.chat_template
    if not isinstance(templates, dict):
        return templates or None
    if "default" in templates or len(templates) < 2:
        return templates.get("default") or next(iter(templates.values()), None)
    raise UserError(
        f"tokenizer.chat_template must be one template, or several of which one is named default; got "
        f"{', '.join(sorted(templates))}. Rename one in the tokenizer's folder."
    )


def render_chat(
    messages: Sequence[Message],
    tokenizer: PreTrainedTokenizerBase,
    origin: str = "prompt",
    add_generation_prompt: bool = True,
) -> str:
    """The text of a conversation, special tokens included, up to where the assistant goes on if that is asked.

    Raises UserError, which begins with `origin`, for a template that fails or that leaves out a turn. The tokenizer
    has a template.
    """
    template = chat_template(tokenizer)
    assert template is not None, "no chat template"
    roles = tuple(turn.role for turn in messages)
    shown = ", ".join(roles)
    try:
        parts, lost = _form(tokenizer, template, roles, add_generation_prompt)
        rendered = _render([(turn.role, turn.content) for turn in messages], parts, tokenizer, template,
                           add_generation_prompt)  # fmt: skip
    except TEMPLATE_ERRORS as error:
        raise UserError(
            f"{origin}: the tokenizer's chat template must take this conversation; got {type(error).__name__} "
            f"({error}) for the roles {shown}."
        ) from error
    if lost:
        raise UserError(
            f"{origin}: the tokenizer's chat template must show every turn; it leaves out what {', '.join(lost)} said, "
            f"of the roles {shown}. Remove such turns, or give the tokenizer another chat_template."
        )
    return rendered


@lru_cache(maxsize=256)
def _form(
    tokenizer: PreTrainedTokenizerBase, template: str, roles: tuple[str, ...], add_generation_prompt: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The roles whose turns this template wants as lists of parts, and those that it loses in either form."""
    turns = [(role, f"turn{number}word") for number, role in enumerate(roles)]
    problem: Exception | None = None
    best: tuple[tuple[str, ...], tuple[str, ...]] | None = None
    for parts in _ROLES_OF_PARTS:
        try:
            rendered = _render(turns, parts, tokenizer, template, add_generation_prompt)
        except TEMPLATE_ERRORS as error:
            problem = problem or error
            continue
        lost = tuple(dict.fromkeys(role for role, word in turns if word not in rendered.lower()))
        if best is None or len(lost) < len(best[1]):
            best = parts, lost
        if not lost:
            break
    if best is None:
        assert problem is not None
        raise problem
    return best


def _render(
    turns: Sequence[tuple[str, str]],
    parts: tuple[str, ...],
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    add_generation_prompt: bool,
) -> str:
    conversation: list[dict[str, Any]] = [
        {"role": role, "content": [{"type": "text", "text": content}] if role in parts else content}
        for role, content in turns
    ]
    return str(
        tokenizer.apply_chat_template(
            conversation, chat_template=template, tokenize=False, add_generation_prompt=add_generation_prompt
        )
    )
