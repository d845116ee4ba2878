"""Which tokens does the training text use most?"""

from collections.abc import Iterable

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from euryale.data.rows import Row
from euryale.data.tokens import tokenize_row

_MAX_TOKENS = 2_000_000  # frequencies of the common tokens have settled long before


def count_tokens(rows: Iterable[Row], tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> Tensor:
    """How often each token is a target, [V], in the first two million tokens of the rows."""
    counts_V = torch.zeros(vocab_size, dtype=torch.int64)
    num_tokens = 0
    for row in rows:
        sample = tokenize_row(row, tokenizer)
        ids = torch.tensor(sample.ids)[torch.tensor(sample.is_target, dtype=torch.bool)]
        counts_V += torch.bincount(ids, minlength=vocab_size)
        num_tokens += len(ids)
        if num_tokens >= _MAX_TOKENS:
            break
    return counts_V
