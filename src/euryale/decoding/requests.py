"""What may be asked of a base, and what is said when it may not?

A prompt and its wishes become a Row here, before anything is computed.
"""

from collections.abc import Sequence

from euryale.decoding.rows import Ends, Row
from euryale.decoding.text import Detokenizer
from euryale.errors import UserError
from euryale.model.base import Base

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
