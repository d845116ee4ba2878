"""The message for a row that no token can follow."""

from collections.abc import Sequence

from euryale.base.base import Base
from euryale.base.nan_check import first_not_finite
from euryale.decoding.sampling import Sampling


def why_broken(base: Base, text: Sequence[int], drafted: Sequence[int], sampling: Sampling) -> str:
    """Why no score after this text was finite. drafted: the tokens of the tree that was verified, its root included."""
    # A candidate whose keys or values are NaN spoils what does not see it, because 0 x NaN is NaN.
    with_drafts = [*text[:-1], *drafted][: base.max_length]
    name = first_not_finite(base, text) or first_not_finite(base, with_drafts)
    if name is None and sampling.is_processed:
        return (
            f"no token is left to write after {len(text)} tokens: logit_bias, banned_tokens, min_new_tokens and "
            "json_schema or regex together forbid all. Forbid less."
        )
    where = f"the first output that is not finite is that of {name}" if name else "a pass without a tree is finite"
    return (
        f"the logits of {base.path} are not finite after {len(text)} tokens: {where}. Weights are "
        f"broken, or too large for {str(base.dtype).removeprefix('torch.')}. Load it in float32 or bfloat16 "
        "(base.dtype), or copy the model again."
    )
