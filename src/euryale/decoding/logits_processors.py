"""Logits of the nodes of a tree, changed by bias, penalties, bans, least length and grammar of the row's settings.

Every node stands for another text: the committed text and the node's own path. So all but the bias are computed node
by node, for all nodes of all rows at once. The order and meaning are those of transformers' `generate` (bias,
repetition, bans, least length); presence and frequency penalties, which it does not have, are those of the OpenAI
interface and of vLLM: they count the answer's tokens, not the prompt's. Grammars (grammar.py) come last.

Nothing here runs unless a live row asks for one of these settings. A setting that a row does not ask for leaves the
row's logits as they are. Bias, penalties and least length are in token_tables.py: all that a step on the device takes.

Letters: B batch, R rows of a shape (1 or B), N nodes, P parents, V vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from euryale.decoding.banned_sequences import BannedSequences
from euryale.decoding.grammar import GrammarState
from euryale.decoding.grammar_masks import mask_next, mask_nodes
from euryale.decoding.sampling import Sampling
from euryale.decoding.token_tables import PENALTIES, Penalties, TokenTables, above_all_bans
from euryale.decoding.tree.tree import Shape


class _Row(NamedTuple):
    sampling: Sampling
    num_prompt: int
    grammar: GrammarState | None


class _Batch:
    """The settings of the live rows, laid out for a step."""

    def __init__(self, rows: Sequence[_Row], device: torch.device) -> None:
        self._rows, self._device = list(rows), device
        self.is_active = any(row.sampling.is_processed for row in rows)
        self.sequences = BannedSequences.of([row.sampling for row in rows], device)
        self._penalties: dict[torch.dtype, Penalties] = {}

    def penalties(self, dtype: torch.dtype) -> Penalties:
        if dtype not in self._penalties:
            columns = []
            for name, off in PENALTIES:
                values = [getattr(row.sampling, name) for row in self._rows]
                is_asked = any(value != off for value in values)
                column = torch.tensor(values, dtype=dtype, device=self._device)[:, None, None] if is_asked else None
                columns.append(column)
            self._penalties[dtype] = Penalties(*columns)
        return self._penalties[dtype]


class LogitsProcessors:
    """What the settings and texts of the live rows do to the logits of a step's nodes."""

    def __init__(self, num_rows: int, vocab_size: int, device: torch.device) -> None:
        """num_rows: of the batch, at most."""
        self.tables = TokenTables(num_rows, vocab_size, device)
        self._device = device
        self._rows: list[_Row] = []
        self._laid_out: _Batch | None = None

    @property
    def is_active(self) -> bool:
        """Whether a live row asks for anything."""
        return self._batch.is_active

    def add(
        self,
        row: int,
        sampling: Sampling,
        prompt: Sequence[int],
        end_ids: Sequence[int],
        grammar: GrammarState | None = None,
    ) -> None:
        """Makes `row` live: an ended row's place, or the next after the last.

        end_ids: the tokens that would end the answer; min_new_tokens forbids them. grammar: of the answer; whoever
        takes the answer's tokens tells it of them.
        """
        self._rows[row : row + 1] = [_Row(sampling, len(prompt), grammar)]
        self._laid_out = None
        self.tables.add(row, sampling, prompt, end_ids)

    def swap_remove(self, row: int) -> None:
        """Removes an ended row; the last row takes its slot."""
        last = len(self._rows) - 1
        self._rows[row] = self._rows[last]
        self._rows.pop()
        self.tables.move(last, row)
        self._laid_out = None

    def extend(self, gained: Sequence[Sequence[int]]) -> None:
        """Each row's answer has grown by these tokens; the last is its next root."""
        self.tables.extend(gained, [row.sampling for row in self._rows])

    def apply(self, logits_BNV: Tensor, tokens_BN: Tensor, shape: Shape, texts: Sequence[Sequence[int]]) -> Tensor:
        """The logits of what follows each node, float32 (float64 when the logits are); unchanged where no row asks.

        Node 0 is the root, the last token of its row's text. texts: each row's prompt and answer so far.
        """
        if not self._batch.is_active:
            return logits_BNV
        scores_BNV = logits_BNV.to(torch.promote_types(logits_BNV.dtype, torch.float32))
        penalties = self._batch.penalties(scores_BNV.dtype)
        is_early_BN = self._is_early(shape.depths_RN, texts)
        scores_BNV = self.tables.apply(scores_BNV, tokens_BN, shape.ancestors_RNN, penalties, is_early_BN)
        if self._batch.sequences is not None:
            scores_BNV = self._batch.sequences.apply(scores_BNV, tokens_BN, shape.parents_RN, texts)
        return mask_nodes(scores_BNV, tokens_BN, shape.parents_RN, self._grammars)

    def guess(self, scores_BPV: Tensor, ids: Tensor | None, is_next: bool = False) -> Tensor:
        """A drafter's scores after bias, bans of single tokens, penalties and the grammar of the text so far.

        The path, bans of sequences and the least length are left out: a guess may be wrong. ids: the tokens that the
        scores stand for; None: all. is_next: whether they are scores of the token after the root, the only one that
        the grammar says something of.
        """
        scores_BPV = scores_BPV.to(torch.promote_types(scores_BPV.dtype, torch.float32))
        scores_BPV = self.tables.guess(scores_BPV, ids, self._batch.penalties(scores_BPV.dtype))
        if is_next:
            scores_BPV = mask_next(scores_BPV, ids, self._grammars)
        return above_all_bans(scores_BPV)

    @property
    def _grammars(self) -> list[GrammarState | None]:
        return [row.grammar for row in self._rows]

    @property
    def _batch(self) -> _Batch:
        """Made in the first step after rows have come or gone."""
        if self._laid_out is None:
            self._laid_out = _Batch(self._rows, self._device)
        return self._laid_out

    def _is_early(self, depths_RN: Tensor, texts: Sequence[Sequence[int]]) -> Tensor | None:
        """Bool [B, N]: where an answer would be shorter than min_new_tokens; None: no row's would."""
        missing = [
            row.sampling.min_new_tokens + row.num_prompt - len(text)
            for row, text in zip(self._rows, texts, strict=True)
        ]
        if max(missing) <= 0:
            return None
        return depths_RN < torch.tensor(missing, device=self._device)[:, None]
