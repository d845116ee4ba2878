"""Token ids of a base: only those that its output matrix has a row for can be read, written or waited for.

A config, a tokenizer or a template may name others: an end token that was added and never trained, a -1 for none.
"""

import logging

from euryale.errors import UserError

log = logging.getLogger(__name__)


def eos_ids(vocab_size: int, *configs: object) -> tuple[int, ...]:
    """End-of-text ids of the first config (of generation, of the model) that has any which can be written.

    The others are left out with a log line. Raises UserError for what is not an id.
    """
    for config in configs:
        given = getattr(config, "eos_token_id", None)
        ids = tuple(given) if isinstance(given, (list, tuple)) else () if given is None else (given,)
        if known := tuple(token for token in ids if one_id(vocab_size, token, "eos_token_id") is not None):
            return tuple(dict.fromkeys(known))
    return ()


def one_id(vocab_size: int, token: object, name: str = "bos_token_id") -> int | None:
    """The id where the output matrix has a row for it, else None. Raises UserError for what is not an id."""
    if token is None:
        return None
    if not isinstance(token, int) or isinstance(token, bool):
        raise UserError(f"{name} must be a token id or a list of token ids; got {token!r}. Correct the config.")
    if 0 <= token < vocab_size:
        return token
    log.info("%s=%d is left out: the base knows ids 0 to %d, so it is never written", name, token, vocab_size - 1)
    return None
