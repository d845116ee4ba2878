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
from euryale.decoding.record import Record

_CHUNK = 512  # prompt tokens a forward: bounds the memory of long prompts
_SCORED = 64  # positions whose logits exist at once


def prefill(
    base: Base,
    forward: Forward,
    drafter: Drafter,
    part: KVCache,
    prompts: Sequence[Sequence[int]],
    first_row: int,
    records: Sequence[Record | None],
) -> Tensor:
    """Reads all of each prompt but its last token into `part`, whose rows are those of the drafter from first_row on.

    Returns the hidden states [B, D] at each prompt's last token but one, and those of the drafter's layers; zeros for
    a prompt of one token. Rows of different lengths are read together, padded at the end: the padding lies after each
    row's committed length, where no mask shows it and the first step overwrites it. Longer prompts should come first:
    rows that were read to their end are left out of the next chunk where no longer one comes after them.
    records: of the rows; those that want their prompt's logprobs get them.
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
        for prompt, record, hidden_TD in zip(prompts, records, hidden_BTD, strict=False):  # rows that are left out end
            if record is not None and record.wants_prompt:
                _record(record, forward, hidden_TD[:, : base.hidden_size], prompt, begin)
        for row, length in enumerate(lengths[:B]):
            if begin < length <= begin + T:
                hidden_BD[row] = hidden_BTD[row, length - 1 - begin]
    return hidden_BD


def _record(record: Record, forward: Forward, hidden_TD: Tensor, prompt: Sequence[int], begin: int) -> None:
    """Logprobs of the prompt's tokens after position `begin`, from the states of a chunk that begins there."""
    if begin == 0:
        record.prompt_logprobs = [None]  # a prompt may be read again after a pass that failed
    following = prompt[begin + 1 : begin + 1 + len(hidden_TD)]
    for start in range(0, len(following), _SCORED):
        tokens = following[start : start + _SCORED]
        record.read_prompt(forward.logits(hidden_TD[None, start : start + len(tokens)])[0], tokens)
