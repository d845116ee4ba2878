"""What is known of one prompt while it is answered, and of its answer afterwards?"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from euryale.base.base import Base
from euryale.decoding.detokenizer import Detokenizer, check_stop, special_ids
from euryale.errors import UserError


@dataclass
class Generation:
    """One answer."""

    text: str
    ids: list[int]  # the end-of-text id included when it was written
    num_steps: int  # forwards of the base after the prompt's
    accepted: list[int]  # tokens gained by each step; their sum is len(ids)
    finish_reason: str  # "eos" | "stop" (a string or an id) | "length" | "context" | "cancelled" | "error"
    seconds: float  # wall clock from its submission to its end, prompt included
    is_lossless: bool = True  # False: the accept rule (`typical`) may write what the base alone would not
    nodes: list[int] = field(default_factory=list)  # nodes that each step verified, the root included; 1: no drafts

    @property
    def undrafted_share(self) -> float:
        """Share of the steps without drafts: none were found, or an adaptive tree fell back to plain decoding."""
        return sum(n == 1 for n in self.nodes) / max(len(self.nodes), 1)

    @property
    def tau(self) -> float:
        """Mean tokens a step, the bonus token included."""
        return len(self.ids) / self.num_steps if self.num_steps else 0.0


class Ends(NamedTuple):
    """What ends an answer, beside its length."""

    strings: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    eos_ids: tuple[int, ...] = ()

    @staticmethod
    def of(base: Base, stop: str | Sequence[str] | None, stop_ids: Sequence[int], ignore_eos: bool) -> "Ends":
        """A stop string that is a special token stops by its id. Raises UserError for what can never match."""
        strings = check_stop(stop)
        wrong = [token for token in stop_ids if not 0 <= token < base.vocab_size]
        if wrong:
            raise UserError(
                f"stop_ids names token {wrong[0]}, and {base.path} knows 0 to {base.vocab_size - 1}. Leave it out: it "
                "can never be written."
            )
        ids = (*stop_ids, *special_ids(base.tokenizer, strings))
        return Ends(strings, ids, () if ignore_eos else base.eos_ids)

    @property
    def ids(self) -> tuple[int, ...]:
        return (*self.eos_ids, *self.stop_ids)


@dataclass
class Row:
    """One prompt on its way to a Generation."""

    prompt: list[int]
    max_ids: int  # where the answer ends at the latest
    reason_at_max: str  # "length" (as asked) or "context" (the base can hold no more)
    detokenizer: Detokenizer | None
    ends: Ends = Ends()
    ids: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    nodes: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    is_lossless: bool = True

    def take(self, tokens: list[int]) -> None:
        """Adds one step's tokens up to the first that ends the answer; an end inside a path cuts the path."""
        start = len(self.ids)
        for token in tokens:
            self.ids.append(token)
            if token in self.ends.eos_ids:
                self.finish_reason = "eos"
            elif token in self.ends.stop_ids or self.detokenizer is not None and self.detokenizer.add(token):
                self.finish_reason = "stop"
            elif len(self.ids) == self.max_ids:
                self.finish_reason = self.reason_at_max
            if self.finish_reason:
                break
        self.accepted.append(len(self.ids) - start)

    @property
    def text_ids(self) -> list[int]:
        """The ids whose text is the answer's: an id that ended it is not shown."""
        has_end = self.finish_reason in ("eos", "stop") and self.ids[-1] in self.ends.ids
        return self.ids[:-1] if has_end else self.ids


Prompt = str | Sequence[int]


def encode(base: Base, prompt: Prompt) -> list[int]:
    """Prompt -> token ids, begin-of-text added as the tokenizer does. Raises UserError for what is no prompt."""
    ids = base.tokenizer(prompt, verbose=False)["input_ids"] if isinstance(prompt, str) else [int(i) for i in prompt]
    if not ids and base.bos_id is not None:
        ids = [base.bos_id]
    if not ids:
        raise UserError("the prompt is empty and this base has no begin-of-text token. Give at least one token.")
    if not 0 <= min(ids) <= max(ids) < base.vocab_size:
        raise UserError(
            f"the prompt holds token ids from {min(ids)} to {max(ids)}, and {base.path} knows 0 to "
            f"{base.vocab_size - 1}. Give ids of this base, or text and the tokenizer that belongs to it."
        )
    return list(ids)


def row_of(base: Base, prompt: Prompt, max_new_tokens: int, ends: Ends) -> Row:
    """Raises UserError for a prompt that leaves no room in the context, or no tokens to write."""
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens={max_new_tokens} cannot be. Give a number of at least 1.")
    ids = encode(base, prompt)
    room = base.max_length - len(ids)
    if room < 1:
        raise UserError(
            f"the prompt has {len(ids)} tokens and the context of {base.path} ends at {base.max_length}. "
            "Shorten the prompt."
        )
    detokenizer = Detokenizer(base.tokenizer, ends.strings) if ends.strings else None
    reason_at_max = "length" if max_new_tokens <= room else "context"
    return Row(ids, min(max_new_tokens, room), reason_at_max, detokenizer, ends)
