"""Prompts into the cache, before the first step.

Letters: B batch, D width, T prompt tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from euryale.base.base import Base
from euryale.base.forward import Forward
from euryale.decoding.drafters.interface import Drafter
from euryale.decoding.kv_cache import KVCache, TreeMask

_CHUNK = 512  # prompt tokens a forward: bounds the memory of long prompts


def prefill(
    base: Base, forward: Forward, drafter: Drafter, part: KVCache, prompts: Sequence[Sequence[int]], first_row: int
) -> Tensor:
    """Reads all of each prompt but its last token into `part`, whose rows are those of the drafter from first_row on.

    Returns the hidden states [B, D] at each prompt's last token but one, and those of the drafter's layers; zeros for
    a prompt of one token. Rows of different lengths are read together, padded at the end: the padding lies after each
    row's committed length, where no mask shows it and the first step overwrites it. Longer prompts should come first:
    rows that were read to their end are left out of the next chunk where no longer one comes after them.
    """
    device = base.device
    lengths = [len(prompt) - 1 for prompt in prompts]
    longest = max(lengths)
    width = base.hidden_size * (1 + len(drafter.layers))
    hidden_BD = torch.zeros(len(prompts), width, dtype=base.dtype, device=device)
    ids = [[*prompt[:-1], *[0] * (longest - length)] for prompt, length in zip(prompts, lengths, strict=True)]
    ids_BT = torch.tensor(ids, dtype=torch.long, device=device)
    for begin in range(0, longest, _CHUNK):
        B = max(row for row, length in enumerate(lengths) if length > begin) + 1
        del part.lengths[B:]
        chunk_BT = ids_BT[:B, begin : begin + _CHUNK]
        T = chunk_BT.shape[1]
        positions_BT = torch.arange(begin, begin + T, device=device).expand(B, T)
        causal_1TT = torch.ones(1, T, T, dtype=torch.bool, device=device).tril()
        part.begin(T)
        mask = TreeMask(T, begin, base.dtype, device).of(part, causal_1TT)
        hidden_BTD = forward.hidden(chunk_BT, positions_BT, part, mask, drafter.layers)
        if drafter.reads_text:
            following = [prompt[begin + 1 : begin + T + 1] for prompt in prompts[:B]]
            drafter.read(first_row, hidden_BTD, following, part.lengths)
        part.commit([list(range(T))] * B)
        for row, length in enumerate(lengths[:B]):
            if begin < length <= begin + T:
                hidden_BD[row] = hidden_BTD[row, length - 1 - begin]
    return hidden_BD
