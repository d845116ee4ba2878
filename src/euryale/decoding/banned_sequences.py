"""Bans of sequences of tokens: the last token of one is not written after the others.

Letters: B batch, R rows of a shape (1 or B), N nodes, V vocabulary, M banned sequences of all rows, L tokens before the
last of the longest of them.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from euryale.decoding.sampling import Sampling


class BannedSequences(NamedTuple):
    """The banned sequences of two tokens and more of every live row."""

    row_M: Tensor
    before_ML: Tensor  # the tokens but the last, latest first
    is_any_ML: Tensor  # places before a sequence shorter than the longest: any token matches
    last_M: Tensor

    @staticmethod
    def of(samplings: Sequence[Sampling], device: torch.device) -> "BannedSequences | None":
        """None where no row bans a sequence."""
        words = [
            (row, word) for row, sampling in enumerate(samplings) for word in sampling.banned_words() if len(word) > 1
        ]
        if not words:
            return None
        longest = max(len(word) for _, word in words) - 1
        before = [[*word[-2::-1], *[0] * (longest - len(word) + 1)] for _, word in words]
        is_any = [[place >= len(word) - 1 for place in range(longest)] for _, word in words]
        return BannedSequences(
            torch.tensor([row for row, _ in words], device=device),
            torch.tensor(before, device=device),
            torch.tensor(is_any, device=device),
            torch.tensor([word[-1] for _, word in words], device=device),
        )

    def apply(
        self, scores_BNV: Tensor, tokens_BN: Tensor, parents_RN: Tensor, texts: Sequence[Sequence[int]]
    ) -> Tensor:
        """Sets to -inf the last token of a sequence after every node whose text ends in the tokens before it."""
        found_BNL, is_there_BNL = _before(tokens_BN, parents_RN, texts, self.before_ML.shape[1])
        is_equal_MNL = (found_BNL[self.row_M] == self.before_ML[:, None]) & is_there_BNL[self.row_M]
        is_match_MN = (is_equal_MNL | self.is_any_ML[:, None]).all(-1)
        loss_MN = torch.zeros_like(is_match_MN, dtype=scores_BNV.dtype).masked_fill_(is_match_MN, -math.inf)
        node_N = torch.arange(tokens_BN.shape[1], device=scores_BNV.device)
        index = (self.row_M[:, None], node_N, self.last_M[:, None])
        return scores_BNV.index_put(index, loss_MN, accumulate=True)  # added: two sequences may end in one token


def _before(tokens_BN: Tensor, parents_RN: Tensor, texts: Sequence[Sequence[int]], num: int) -> tuple[Tensor, Tensor]:
    """The last `num` tokens of each node's text, the latest first, [B, N, num]; and whether there are so many."""
    N, device = tokens_BN.shape[1], tokens_BN.device
    # After the nodes stand the tokens before the root, latest first; going back is following one index.
    tails = [list(text[-2 : -2 - num : -1]) for text in texts]
    tail_BL = torch.tensor([tail + [0] * (num - len(tail)) for tail in tails], device=device)
    is_there_BL = torch.tensor([[place < len(tail) for place in range(num)] for tail in tails], device=device)
    known_BX = torch.cat([tokens_BN, tail_BL], 1)
    is_there_BX = torch.cat([torch.ones_like(tokens_BN, dtype=torch.bool), is_there_BL], 1)
    parents_BN = parents_RN.expand_as(tokens_BN)
    back_BX = torch.cat([parents_BN, torch.arange(1, num + 1, device=device).expand(len(tails), -1) + N], 1)
    back_BX = back_BX.clamp(max=N + num - 1)
    back_BX[:, 0] = N
    at_BN = torch.arange(N, device=device).expand_as(tokens_BN)
    before, is_there = [], []
    for _ in range(num):
        before.append(known_BX.gather(1, at_BN))
        is_there.append(is_there_BX.gather(1, at_BN))
        at_BN = back_BX.gather(1, at_BN)
    return torch.stack(before, -1), torch.stack(is_there, -1)
