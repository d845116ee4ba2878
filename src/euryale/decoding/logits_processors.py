"""Which logits does a node of a tree have, when they depend on the text before it?

Every node stands for another text: what is committed, and the node's own path. So penalties, bans and the least
length are worked out node by node, for all nodes at once. The order and meaning are those of transformers' `generate`
(bias, repetition, bans, least length); presence and frequency penalties, which it does not have, are those of the
OpenAI interface and of vLLM: they count the answer's tokens, not the prompt's.

Nothing here runs unless one of these settings was asked for.

Letters: B batch, R rows of a shape (1 or B), N nodes, V vocabulary, T tokens, M tokens before the
last of a banned sequence.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from euryale.decoding.sampling import Sampling
from euryale.decoding.tree.tree import Shape


class PathProcessors:
    """What the texts of the live rows do to the logits of the next step's nodes."""

    def __init__(self, sampling: Sampling, num_rows: int, vocab_size: int, device: torch.device) -> None:
        """num_rows: that live at once, at most."""
        self.sampling = sampling
        self.device = device
        self._num_prompt: list[int] = []
        self._has_penalty = bool(sampling.presence_penalty or sampling.frequency_penalty)
        self._is_in_text_BV = torch.zeros(num_rows, vocab_size, dtype=torch.bool, device=device)
        self._in_answer_BV = torch.zeros(num_rows, vocab_size, device=device)
        self._is_end_BV = torch.zeros(num_rows, vocab_size, dtype=torch.bool, device=device)
        self._bias_V = torch.zeros(vocab_size, device=device)
        for token, bias in sampling.logit_bias.items():
            self._bias_V[token] += bias
        self._bans = [word for word in sampling.banned_words() if len(word) > 1]
        self._is_banned_V = torch.zeros(vocab_size, dtype=torch.bool, device=device)
        self._is_banned_V[[word[0] for word in sampling.banned_words() if len(word) == 1]] = True

    @staticmethod
    def of(sampling: Sampling, num_rows: int, vocab_size: int, device: torch.device) -> "PathProcessors | None":
        """None when the logits stay as they are."""
        unprocessed = Sampling(sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p)
        return None if sampling == unprocessed else PathProcessors(sampling, num_rows, vocab_size, device)

    def admit(self, row: int, prompt: Sequence[int], end_ids: Sequence[int]) -> None:
        """A new prompt takes this row. end_ids: what would end its answer, which min_new_tokens holds back."""
        self._num_prompt[row : row + 1] = [len(prompt)]
        self._in_answer_BV[row] = 0
        for is_there_V, ids in ((self._is_in_text_BV[row], prompt), (self._is_end_BV[row], end_ids)):
            is_there_V.zero_()[list(ids)] = True

    def retire(self, row: int) -> None:
        """The row has ended; the last one goes on in its place."""
        num_prompt = self._num_prompt.pop()
        if row < len(self._num_prompt):
            self._num_prompt[row] = num_prompt
            for table_BV in (self._is_in_text_BV, self._in_answer_BV, self._is_end_BV):
                table_BV[row] = table_BV[len(self._num_prompt)]

    def extend(self, row: int, tokens: Sequence[int]) -> None:
        """The row's answer has grown by these tokens; the last is its next root."""
        tokens_T = torch.tensor(list(tokens), device=self.device)
        self._is_in_text_BV[row, tokens_T] = True
        self._in_answer_BV[row].scatter_add_(0, tokens_T, torch.ones(len(tokens), device=self.device))

    def apply(
        self,
        logits_BNV: Tensor,
        tokens_BN: Tensor,
        shape: Shape,
        texts: Sequence[Sequence[int]],
    ) -> Tensor:
        """The logits of what follows each node. Node 0 is the root, the last token of its row's text.

        texts: each row's prompt and answer so far.
        The result is float32, or float64 when the logits are.
        """
        sampling = self.sampling
        scores_BNV = logits_BNV.to(torch.promote_types(logits_BNV.dtype, torch.float32)) + self._bias_V
        if sampling.repetition_penalty != 1.0 or self._has_penalty:
            on_path_BNV = _count_path(scores_BNV, tokens_BN, shape.ancestors_RNN)
        if sampling.repetition_penalty != 1.0:
            is_in_text_BNV = (on_path_BNV > 0) | self._is_in_text_BV[: len(texts), None]
            penalty = sampling.repetition_penalty
            penalised_BNV = torch.where(scores_BNV < 0, scores_BNV * penalty, scores_BNV / penalty)
            scores_BNV = torch.where(is_in_text_BNV, penalised_BNV, scores_BNV)
        if self._has_penalty:
            count_BNV = on_path_BNV + self._in_answer_BV[: len(texts), None]
            scores_BNV = scores_BNV - sampling.frequency_penalty * count_BNV
            scores_BNV = scores_BNV - sampling.presence_penalty * (count_BNV > 0)
        scores_BNV = scores_BNV.masked_fill(self._is_banned_V, -math.inf)
        if self._bans:
            scores_BNV = self._ban_sequences(scores_BNV, tokens_BN, shape.parents_RN, texts)
        if sampling.min_new_tokens:
            answered = [len(text) - num for text, num in zip(texts, self._num_prompt, strict=True)]
            num_new_BN = torch.tensor(answered, device=self.device)[:, None] + shape.depths_RN
            is_early_BN1 = (num_new_BN < sampling.min_new_tokens)[..., None]
            scores_BNV = scores_BNV.masked_fill(is_early_BN1 & self._is_end_BV[: len(texts), None], -math.inf)
        return scores_BNV

    def guess(self, scores_BPV: Tensor, ids: Tensor | None) -> Tensor:
        """A drafter's scores of what may come, as bias, bans of single tokens and penalties of the text change them.

        What stands on the path is left out, and so are bans of sequences and the least length: a guess may be wrong.
        ids: the tokens that the scores stand for; None: all.
        """

        def of(table_xV: Tensor) -> Tensor:
            return table_xV if ids is None else table_xV[..., ids]

        B, sampling = len(scores_BPV), self.sampling
        scores_BPV = scores_BPV.to(torch.promote_types(scores_BPV.dtype, torch.float32)) + of(self._bias_V)
        if sampling.repetition_penalty != 1.0:
            penalty = sampling.repetition_penalty
            penalised_BPV = torch.where(scores_BPV < 0, scores_BPV * penalty, scores_BPV / penalty)
            scores_BPV = torch.where(of(self._is_in_text_BV[:B])[:, None], penalised_BPV, scores_BPV)
        if self._has_penalty:
            count_BV = of(self._in_answer_BV[:B])
            loss_BV = sampling.frequency_penalty * count_BV + sampling.presence_penalty * (count_BV > 0)
            scores_BPV = scores_BPV - loss_BV[:, None]
        # Not -inf, which is no score to rank by: a tree may need more candidates than are allowed.
        return scores_BPV.masked_fill(of(self._is_banned_V), torch.finfo(torch.float32).min / 4)

    def _ban_sequences(
        self, scores_BNV: Tensor, tokens_BN: Tensor, parents_RN: Tensor, texts: Sequence[Sequence[int]]
    ) -> Tensor:
        """Bans the last token of a sequence behind every node whose text ends in the tokens before it."""
        longest = max(len(word) for word in self._bans) - 1
        before_BNM, is_there_BNM = _before(tokens_BN, parents_RN, texts, longest)
        for *start, last in self._bans:
            wanted_M = torch.tensor(start[::-1], device=self.device)
            M = len(start)
            is_match_BN = ((before_BNM[..., :M] == wanted_M) & is_there_BNM[..., :M]).all(-1)
            scores_BNV[..., last].masked_fill_(is_match_BN, -math.inf)
        return scores_BNV


def _count_path(scores_BNV: Tensor, tokens_BN: Tensor, ancestors_RNN: Tensor) -> Tensor:
    """How often each token stands on a node's path below the root (which is in the text already)."""
    B, N = tokens_BN.shape
    weights_RNN = ancestors_RNN.to(scores_BNV.dtype, copy=True)
    weights_RNN[:, :, 0] = 0
    tokens_BNN = tokens_BN[:, None].expand(B, N, N)
    return torch.zeros_like(scores_BNV).scatter_add_(2, tokens_BNN, weights_RNN.expand(B, N, N))


def _before(tokens_BN: Tensor, parents_RN: Tensor, texts: Sequence[Sequence[int]], num: int) -> tuple[Tensor, Tensor]:
    """The last `num` tokens of each node's text, the latest first, [B, N, num]; and whether there are so many."""
    N, device = tokens_BN.shape[1], tokens_BN.device
    # Behind the nodes stand the tokens before the root, latest first; going back is following one index.
    tails = [list(text[-2 : -2 - num : -1]) for text in texts]
    tail_BM = torch.tensor([tail + [0] * (num - len(tail)) for tail in tails], device=device)
    is_there_BM = torch.tensor([[m < len(tail) for m in range(num)] for tail in tails], device=device)
    known_BX = torch.cat([tokens_BN, tail_BM], 1)
    is_there_BX = torch.cat([torch.ones_like(tokens_BN, dtype=torch.bool), is_there_BM], 1)
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
