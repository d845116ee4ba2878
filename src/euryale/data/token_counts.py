"""Frequencies of tokens in the training text."""

from collections.abc import Iterable

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from euryale.data.bad_rows import BadRows
from euryale.data.rows import Row
from euryale.data.tokens import tokenize_row
from euryale.errors import UserError

_MAX_TOKENS = 2_000_000  # frequencies of the common tokens have settled long before


def count_tokens(
    rows: Iterable[Row], tokenizer: PreTrainedTokenizerBase, vocab_size: int, on_error: str = "stop"
) -> Tensor:
    """How often each token is a target, [V], in the first two million tokens of the rows.

    Raises UserError for a conversation that the chat template refuses, unless on_error is skip.
    """
    refused = BadRows(on_error)
    counts_V = torch.zeros(vocab_size, dtype=torch.int64)
    num_tokens = 0
    for row in rows:
        try:
            sample = tokenize_row(row, tokenizer)
        except UserError as problem:
            refused.meet(problem)
            continue
        ids = torch.tensor([i for i, is_target in zip(sample.ids, sample.is_target, strict=True) if is_target]).long()
        counts_V += torch.bincount(ids, minlength=vocab_size)
        num_tokens += len(ids)
        if num_tokens >= _MAX_TOKENS:
            break
    refused.report()
    return counts_V
