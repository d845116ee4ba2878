"""Bias, penalties and least length: what the settings and the text of a row say of every token, and what that does to
scores.

At most four tables of rows x vocabulary exist in device memory, each from the first row that needs it; after that a
table stays where it is, so a CUDA graph may hold it. The order and meaning are those of logits_processors.py. A setting
that a row does not ask for leaves the row's scores as they are.

Letters: B batch, R rows of a shape (1 or B), N nodes, P parents, V vocabulary, M entries of a list over all rows, T
tokens of a path.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from euryale.decoding.sampling import Sampling


class Penalties(NamedTuple):
    """[B, 1, 1] each, in the dtype of the scores; None where no row asks."""

    repetition: Tensor | None
    presence: Tensor | None
    frequency: Tensor | None

    @property
    def has_counts(self) -> bool:
        """Whether it matters how often the answer holds a token."""
        return self.presence is not None or self.frequency is not None


PENALTIES = (("repetition_penalty", 1.0), ("presence_penalty", 0.0), ("frequency_penalty", 0.0))  # and what is off


class TokenTables:
    """The tables of the live rows."""

    def __init__(self, num_rows: int, vocab_size: int, device: torch.device) -> None:
        """num_rows: of the batch, at most."""
        self._shape, self._device = (num_rows, vocab_size), device
        self._is_in_text_BV: Tensor | None = None  # bool, for the repetition penalty
        self._in_answer_BV: Tensor | None = None  # counts, for presence and frequency penalties
        self._bias_BV: Tensor | None = None  # logit_bias; -inf for banned tokens
        self._is_end_BV: Tensor | None = None  # bool: tokens that would end the answer, for min_new_tokens

    def add(self, row: int, sampling: Sampling, prompt: Sequence[int], end_ids: Sequence[int] = ()) -> None:
        """Makes `row` live: an ended row's place, or the next after the last. end_ids: what would end its answer."""
        if sampling.repetition_penalty != 1.0:
            if self._is_in_text_BV is None:
                self._is_in_text_BV = torch.zeros(self._shape, dtype=torch.bool, device=self._device)
            self._is_in_text_BV[row].zero_()[list(prompt)] = True
        if counts(sampling):
            if self._in_answer_BV is None:
                self._in_answer_BV = torch.zeros(self._shape, dtype=torch.float32, device=self._device)
            self._in_answer_BV[row] = 0
        bias = dict(sampling.logit_bias) | {word[0]: -math.inf for word in sampling.banned_words() if len(word) == 1}
        if bias and self._bias_BV is None:
            self._bias_BV = torch.zeros(self._shape, dtype=torch.float32, device=self._device)
        if self._bias_BV is not None:
            self._bias_BV[row] = 0
            if bias:
                self._bias_BV[row, list(bias)] = self._bias_BV.new_tensor(list(bias.values()))
        if sampling.min_new_tokens:
            if self._is_end_BV is None:
                self._is_end_BV = torch.zeros(self._shape, dtype=torch.bool, device=self._device)
            self._is_end_BV[row].zero_()[list(end_ids)] = True

    def move(self, row: int, to: int) -> None:
        """Row `row` takes the slot of another."""
        for table_BV in (self._is_in_text_BV, self._in_answer_BV, self._bias_BV, self._is_end_BV):
            if table_BV is not None and row != to:
                table_BV[to] = table_BV[row]

    def extend(self, gained: Sequence[Sequence[int]], samplings: Sequence[Sampling]) -> None:
        """Each row's answer has grown by these tokens; the last is its next root."""
        for table_BV, is_asked in (
            (self._is_in_text_BV, [sampling.repetition_penalty != 1.0 for sampling in samplings]),
            (self._in_answer_BV, [counts(sampling) for sampling in samplings]),
        ):
            pairs = [(row, token) for row, tokens in enumerate(gained) if is_asked[row] for token in tokens]
            if table_BV is not None and pairs:
                row_M, token_M = torch.tensor(pairs, device=self._device).unbind(1)
                ones_M = torch.ones(len(pairs), dtype=table_BV.dtype, device=self._device)
                table_BV.index_put_((row_M, token_M), ones_M, accumulate=table_BV.dtype != torch.bool)

    def extend_on_device(self, tokens_BT: Tensor, is_gained_BT: Tensor, penalties: Penalties) -> None:
        """The same without a value that the host reads; what is_gained_BT leaves out must be in the row's text.

        All rows are written, those that do not ask for it too: their tables are not read before they are live anew.
        """
        if penalties.repetition is not None and self._is_in_text_BV is not None:
            self._is_in_text_BV[: len(tokens_BT)].scatter_(1, tokens_BT, True)
        if penalties.has_counts and self._in_answer_BV is not None:
            ones_BT = is_gained_BT.to(self._in_answer_BV.dtype)
            self._in_answer_BV[: len(tokens_BT)].scatter_add_(1, tokens_BT, ones_BT)

    def apply(
        self,
        scores_BNV: Tensor,
        tokens_BN: Tensor,
        ancestors_RNN: Tensor,
        penalties: Penalties,
        is_early_BN: Tensor | None = None,
    ) -> Tensor:
        """The scores of what follows each node. Node 0 is the root, the last token of its row's text.

        is_early_BN: bool, where min_new_tokens lets nothing end the answer; None: nowhere. False in rows without it.
        """
        B = len(tokens_BN)
        if self._bias_BV is not None:
            scores_BNV = scores_BNV + self._bias_BV[:B, None]
        if penalties.repetition is not None or penalties.has_counts:
            on_path_BNV = _count_path(scores_BNV, tokens_BN, ancestors_RNN)
        if penalties.repetition is not None and self._is_in_text_BV is not None:
            is_in_text_BNV = (on_path_BNV > 0) | self._is_in_text_BV[:B, None]
            scores_BNV = _repetition(scores_BNV, is_in_text_BNV, penalties.repetition)
        if penalties.has_counts and self._in_answer_BV is not None:
            scores_BNV = _count_penalties(scores_BNV, on_path_BNV + self._in_answer_BV[:B, None], penalties)
        if is_early_BN is not None and self._is_end_BV is not None:
            scores_BNV = scores_BNV.masked_fill(is_early_BN[..., None] & self._is_end_BV[:B, None], -math.inf)
        return scores_BNV

    def guess(self, scores_BPV: Tensor, ids: Tensor | None, penalties: Penalties) -> Tensor:
        """A drafter's scores of these ids (None: all), without path and least length: a guess may be wrong."""
        B = len(scores_BPV)

        def of(table_BV: Tensor) -> Tensor:
            return (table_BV[:B] if ids is None else table_BV[:B, ids])[:, None]

        if self._bias_BV is not None:
            scores_BPV = scores_BPV + of(self._bias_BV)
        if penalties.repetition is not None and self._is_in_text_BV is not None:
            scores_BPV = _repetition(scores_BPV, of(self._is_in_text_BV), penalties.repetition)
        if penalties.has_counts and self._in_answer_BV is not None:
            scores_BPV = _count_penalties(scores_BPV, of(self._in_answer_BV), penalties)
        return scores_BPV


def counts(sampling: Sampling) -> bool:
    """Whether it matters how often the answer holds a token."""
    return bool(sampling.presence_penalty or sampling.frequency_penalty)


def above_all_bans(scores: Tensor) -> Tensor:
    """Not -inf, which is not a score to rank guesses by: a tree may need more candidates than are allowed."""
    return scores.clamp(min=torch.finfo(torch.float32).min / 4)


def _repetition(scores_BNV: Tensor, is_in_text_BNV: Tensor, penalty_B11: Tensor) -> Tensor:
    penalised_BNV = torch.where(scores_BNV < 0, scores_BNV * penalty_B11, scores_BNV / penalty_B11)
    return torch.where(is_in_text_BNV, penalised_BNV, scores_BNV)


def _count_penalties(scores_BNV: Tensor, count_BNV: Tensor, penalties: Penalties) -> Tensor:
    if penalties.frequency is not None:
        scores_BNV = scores_BNV - penalties.frequency * count_BNV
    if penalties.presence is not None:
        scores_BNV = scores_BNV - penalties.presence * (count_BNV > 0)
    return scores_BNV


def _count_path(scores_BNV: Tensor, tokens_BN: Tensor, ancestors_RNN: Tensor) -> Tensor:
    """How often each token stands on a node's path below the root (which is in the text already)."""
    B, N = tokens_BN.shape
    weights_RNN = ancestors_RNN.to(scores_BNV.dtype, copy=True)
    weights_RNN[:, :, 0].fill_(0)
    tokens_BNN = tokens_BN[:, None].expand(B, N, N)
    return torch.zeros_like(scores_BNV).scatter_add_(2, tokens_BNN, weights_RNN.expand(B, N, N))
