"""Prompts into the cache, before the first step: all at once, or a long one chunk by chunk between steps of others.

Letters: B batch, D width, T prompt tokens.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from euryale.base.base import Base
from euryale.base.forward import Forward
from euryale.decoding.drafters.interface import Drafter
from euryale.decoding.kv_cache import KVCache, TreeMask
from euryale.decoding.prefix_cache import PrefixCache
from euryale.decoding.record import Record
from euryale.decoding.request import Request

CHUNK = 128  # prompt tokens a forward: bounds the memory of long prompts, and how long others wait for one
_SCORED = 64  # positions whose logits exist at once

Tell = Callable[[Tensor, Sequence[Sequence[int]], Sequence[int]], None]  # Drafter.read of rows that are known


class PromptReader:
    """Reads all of each prompt but its last token into `part`, a chunk at a time.

    Rows of different lengths are read together, padded at the end: the padding lies after each row's committed length,
    where no mask shows it and the first step overwrites it. Longer prompts should come first: rows that were read to
    their end are left out of the next chunk where no longer one comes after them.
    """

    def __init__(
        self,
        base: Base,
        forward: Forward,
        drafter: Drafter,
        part: KVCache,
        requests: Sequence[Request],
        tell: Tell,
        begin: int = 0,
    ) -> None:
        """tell: is told what the drafter reads. Records that want their prompt's logprobs get them.

        begin: tokens of every prompt whose keys and values are in `part` already.
        """
        self._base, self._forward, self._part = base, forward, part
        self._layers, self._tell = drafter.layers, tell if drafter.reads_text else None
        self._prompts = prompts = [request.prompt for request in requests]
        self._records = [request.record for request in requests]
        self._lengths = lengths = [len(prompt) - 1 for prompt in prompts]
        ids = [[*prompt[:-1], *[0] * (max(lengths) - length)] for prompt, length in zip(prompts, lengths, strict=True)]
        self._ids_BT = torch.tensor(ids, dtype=torch.long, device=base.device)
        self._begin = begin
        part.lengths = [begin] * len(requests)
        # The states at each prompt's last token but one, and those of the drafter's layers; zeros where it has one.
        width = base.hidden_size * (1 + len(drafter.layers))
        self.hidden_BD = torch.zeros(len(prompts), width, dtype=base.dtype, device=base.device)

    @property
    def is_done(self) -> bool:
        """Whether all prompts were read."""
        return self._begin >= max(self._lengths)

    def read_chunk(self) -> None:
        """The next CHUNK tokens of every prompt that goes on."""
        base, part, begin, device = self._base, self._part, self._begin, self._base.device
        B = max(row for row, length in enumerate(self._lengths) if length > begin) + 1
        del part.lengths[B:]
        chunk_BT = self._ids_BT[:B, begin : begin + CHUNK]
        T = chunk_BT.shape[1]
        positions_BT = torch.arange(begin, begin + T, device=device).expand(B, T)
        causal_1TT = torch.ones(1, T, T, dtype=torch.bool, device=device).tril()
        part.begin(T)
        mask = TreeMask(T, begin, base.dtype, device).of(part, causal_1TT)
        hidden_BTD = self._forward.hidden(chunk_BT, positions_BT, part, mask, self._layers)
        following = [prompt[begin + 1 : begin + T + 1] for prompt in self._prompts[:B]]
        if self._tell is not None:
            self._tell(hidden_BTD, following, part.lengths)
        part.commit([list(range(T))] * B)
        for row, tokens in enumerate(following):
            record = self._records[row]
            if record is not None and record.wants_prompt:
                self._record(record, hidden_BTD[row, :, : base.hidden_size], tokens)
            if begin < self._lengths[row] <= begin + T:
                self.hidden_BD[row] = hidden_BTD[row, self._lengths[row] - 1 - begin]
        self._begin += T

    def _record(self, record: Record, hidden_TD: Tensor, following: Sequence[int]) -> None:
        """Logprobs of the tokens that follow these states."""
        if self._begin == 0:
            record.prompt_logprobs = [None]  # a prompt may be read again after a pass that failed
        for start in range(0, len(following), _SCORED):
            tokens = following[start : start + _SCORED]
            record.read_prompt(self._forward.logits(hidden_TD[None, start : start + len(tokens)])[0], tokens)


def prefill(
    base: Base,
    forward: Forward,
    drafter: Drafter,
    part: KVCache,
    requests: Sequence[Request],
    first_row: int,
) -> Tensor:
    """Reads prompts whole into `part`, whose rows are those of the drafter from first_row on.

    Returns PromptReader.hidden_BD.
    """
    reader = PromptReader(base, forward, drafter, part, requests, partial(drafter.read, first_row))
    while not reader.is_done:
        reader.read_chunk()
    return reader.hidden_BD


class LongPrompt:
    """A prompt that is read between steps into a row that does not live yet, and so has no place at the drafter."""

    def __init__(
        self,
        base: Base,
        forward: Forward,
        drafter: Drafter,
        part: KVCache,
        request: Request,
        prefixes: PrefixCache | None,
    ) -> None:
        """prefixes: where the beginning of its text may be known."""
        self._told: list[tuple[Tensor, Sequence[Sequence[int]], list[int]]] = []
        self._drafter = drafter
        self.request = request
        is_scored = request.record is not None and request.record.wants_prompt  # logprobs come from reading it
        request.num_cached = prefixes.fill(request.prompt, part.kv[:, :, 0]) if prefixes and not is_scored else 0
        self.reader = PromptReader(base, forward, drafter, part, [request], self._keep, request.num_cached)

    def tell(self, row: int) -> None:
        """Tells the drafter what was read, as of `row`."""
        for states_BTC, tokens, starts in self._told:
            self._drafter.read(row, states_BTC, tokens, starts)

    def _keep(self, states_BTC: Tensor, tokens: Sequence[Sequence[int]], starts: Sequence[int]) -> None:
        self._told.append((states_BTC, tokens, list(starts)))
