"""The place of a user's turn in a chat template, the kinds of questions asked for, and which texts can be asked.

Questions come from the template alone (questions.py); system prompts steer them into kinds (Magpie, section 2.3).
"""

from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from euryale.data.chat_template import chat_template, render_chat
from euryale.data.rows import Message
from euryale.errors import UserError

# What the base is told it is for while it writes questions; None: nothing, so that the template's own default applies.
# Half of the questions are free; the other kinds share the rest.
KINDS: dict[str, str | None] = {
    "free": None,
    "prose": "You are a helpful writer. The user asks for stories, letters, speeches, poems and essays.",
    "code": "You are a programming assistant. The user asks for functions, scripts and explanations of code.",
    "maths": "You are a maths tutor. The user asks word problems and exercises, with all numbers given.",
    "extraction": "You extract facts from texts. The user gives a text and asks what it says.",
    "translation": "You are a translator. The user gives sentences and asks for a translation.",
    "summaries": "You summarise texts. The user gives a text of several sentences and asks for a summary.",
    "questions": "You answer short questions about science, history, geography and everyday life.",
}
_SENTINEL = "A Question goes Here"
_LEAST_CHARACTERS = 12
_MOST_REPEATED = 0.3  # share of a question's 4-grams of words that stood before in it


class QuestionFrame(NamedTuple):
    """What stands around a user's turn in a rendered conversation."""

    before: str  # everything up to the question, history included
    after: str  # what ends the turn


def question_frame(
    tokenizer: PreTrainedTokenizerBase, history: Sequence[Message] = (), system: str | None = None
) -> QuestionFrame:
    """The template's text around the next question.

    Raises UserError for a base without a chat template, or one whose template changes or drops a question.
    """
    if chat_template(tokenizer) is None:
        raise UserError(
            "data=self needs a base with a chat template, and this one has none. Use an instruct model, or give texts: "
            "data=files data.files=FILE."
        )
    turns = [Message("system", system)] if system is not None else []
    turns += [*history, Message("user", _SENTINEL)]
    rendered = render_chat(turns, tokenizer, "data=self", add_generation_prompt=False)
    if rendered.count(_SENTINEL) != 1:
        raise UserError("data=self needs a chat template that shows a user's message as it is; this base's does not.")
    before, after = rendered.split(_SENTINEL)
    return QuestionFrame(before, after)


def end_of_turn(tokenizer: PreTrainedTokenizerBase, frame: QuestionFrame) -> str:
    """The string that ends a user's turn: its first special token, or the first line of what follows."""
    for token in sorted(tokenizer.all_special_tokens, key=len, reverse=True):
        if frame.after.lstrip().startswith(token):
            return token
    first = frame.after.strip().split("\n")[0]
    return first or "\n"


def kind_of(number: int) -> str:
    """The kind of question number `number`: every second one is free, the other kinds take turns."""
    others = [kind for kind in KINDS if kind != "free"]
    return "free" if number % 2 == 0 else others[(number // 2) % len(others)]


def is_usable(question: str) -> bool:
    """Whether a written text can be asked: long enough, printable, and not one phrase again and again."""
    words = question.split()
    if len(question.strip()) < _LEAST_CHARACTERS or len(words) < 3:
        return False
    if not all(character.isprintable() or character in "\n\t" for character in question):
        return False
    grams = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
    return not grams or 1 - len(set(grams)) / len(grams) <= _MOST_REPEATED
