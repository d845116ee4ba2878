"""How is every row of a batch drawn by settings of its own?

Rows that share a Sampling are a group: they are processed, drawn and accepted at once. Where all rows agree there is
one group, nothing is picked apart, and a step costs what it costs with one Sampling for all. Otherwise each group
takes its rows out of the batch, and the results are put together again.

Letters: B batch, G rows of a group, N nodes, V vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from euryale.decoding.accept import AcceptConfig, Verified, accept
from euryale.decoding.drafters.interface import Draft
from euryale.decoding.logits_processors import PathProcessors
from euryale.decoding.sampling import Sampling, draw


class Group:
    """Rows with one Sampling."""

    def __init__(self, sampling: Sampling, num_rows: int, vocab_size: int, device: torch.device) -> None:
        self.sampling = sampling
        self.processors = PathProcessors.of(sampling, num_rows, vocab_size, device)
        self.members: list[int] = []  # rows of the batch, in the order in which the processors know them

    def leave(self, row: int) -> None:
        """The last member takes its place here."""
        place, last = self.members.index(row), self.members.pop()
        if place < len(self.members):
            self.members[place] = last
        if self.processors is not None:
            self.processors.retire(place)


class Judged(NamedTuple):
    """What the base thinks of a draft, group by group."""

    hidden_BND: Tensor
    parts: list[tuple[Group, Verified]]


class Chosen(NamedTuple):
    """What a step takes, over the whole batch."""

    is_accepted_BN: Tensor
    targets_BN: Tensor
    is_finite_BN: Tensor  # whether the score of the base's choice at a node is a number


class Mixture:
    """The settings of the live rows."""

    def __init__(self, rule: AcceptConfig, num_rows: int, vocab_size: int, device: torch.device) -> None:
        """num_rows: that live at once, at most."""
        self._rule, self._device = rule, device
        self._how = (num_rows, vocab_size, device)
        self._of_row: list[Group] = []
        self._groups: list[Group] = []

    def admit(self, row: int, sampling: Sampling, prompt: Sequence[int], end_ids: Sequence[int]) -> None:
        """A new text takes this row: the place of one that ended, or the next behind the last."""
        group = next((g for g in self._groups if g.sampling == sampling), None)
        if group is None:
            # Groups that nobody is in go only now: the next prompt is mostly drawn like the last one.
            self._groups = [g for g in self._groups if g.members]
            group = Group(sampling, *self._how)
            self._groups.append(group)
        before = self._of_row[row] if row < len(self._of_row) else None
        if before is not group:
            if before is not None:
                before.leave(row)
            group.members.append(row)
        if group.processors is not None:
            group.processors.admit(group.members.index(row), prompt, end_ids)
        self._of_row[row : row + 1] = [group]

    def retire(self, row: int) -> None:
        """The row has ended; the last one goes on in its place."""
        self._of_row[row].leave(row)
        last = len(self._of_row) - 1
        if row < last:
            moved = self._of_row[last].members
            moved[moved.index(last)] = row
        self._of_row[row] = self._of_row[last]
        self._of_row.pop()

    def extend(self, row: int, tokens: Sequence[int]) -> None:
        """The row's answer has grown by these tokens."""
        group = self._of_row[row]
        if group.processors is not None:
            group.processors.extend(group.members.index(row), tokens)

    def is_processed(self, row: int) -> bool:
        """Whether the row's logits do not stay as they are."""
        return self._of_row[row].processors is not None

    @property
    def guess(self) -> Callable[[Tensor, Tensor | None], Tensor] | None:
        """What the settings do to the scores of a drafter's candidates, [B, P, V]; None: nothing."""
        processed = [group for group in self._groups if group.members and group.processors is not None]
        if not processed:
            return None
        if self._is_whole(processed[0]) and processed[0].processors is not None:
            return processed[0].processors.guess

        def group_by_group(scores_BPV: Tensor, ids: Tensor | None) -> Tensor:
            changed_BPV = scores_BPV.to(torch.promote_types(scores_BPV.dtype, torch.float32), copy=True)
            for group in processed:
                rows_G = torch.tensor(group.members, device=self._device)
                changed_BPV[rows_G] = group.processors.guess(scores_BPV[rows_G], ids)  # type: ignore[union-attr]
            return changed_BPV

        return group_by_group

    def judge(
        self,
        draft: Draft,
        hidden_BND: Tensor,
        logits_BNV: Tensor,
        noise_BNV: Tensor | None,
        chance_BN: Tensor | None,
        texts: Sequence[Sequence[int]],
    ) -> Judged:
        """Processes the logits and draws from them. texts: each row's prompt and answer so far."""
        parts = []
        for group in self._groups:
            if not group.members:
                continue
            if self._is_whole(group):
                how = (draft, logits_BNV, noise_BNV, chance_BN, texts)
            else:
                rows_G = torch.tensor(group.members, device=self._device)
                how = (
                    draft.of_rows(rows_G),
                    logits_BNV[rows_G],
                    _of_rows(noise_BNV, rows_G),
                    _of_rows(chance_BN, rows_G),
                    [texts[row] for row in group.members],
                )
            parts.append((group, _judge(group, *how)))
        return Judged(hidden_BND, parts)

    def accept(self, judged: Judged) -> Chosen:
        """Walks down the draft by the rule."""
        found = []
        for group, verified in judged.parts:
            accepted = accept(self._rule, verified, group.sampling)
            found.append(Chosen(accepted.is_accepted_BN, accepted.targets_BN, verified.drawn.is_finite_BN))
        if len(found) == 1 and self._is_whole(judged.parts[0][0]):
            return found[0]
        order_B = torch.tensor([row for group, _ in judged.parts for row in group.members], device=self._device)
        place_B = order_B.argsort()
        return Chosen(*(torch.cat(parts)[place_B] for parts in zip(*found, strict=True)))

    def _is_whole(self, group: Group) -> bool:
        """Whether the group is the batch, in the order of the batch."""
        return group.members == list(range(len(self._of_row)))


def _judge(
    group: Group,
    draft: Draft,
    logits_BNV: Tensor,
    noise_BNV: Tensor | None,
    chance_BN: Tensor | None,
    texts: Sequence[Sequence[int]],
) -> Verified:
    if group.sampling.temperature == 0:
        noise_BNV = None
    if group.processors is not None:
        logits_BNV = group.processors.apply(logits_BNV, draft.tokens_BN, draft.shape, texts)
    return Verified(draft, logits_BNV, draw(logits_BNV, group.sampling, noise_BNV), noise_BNV, chance_BN)


def _of_rows(tensor_BX: Tensor | None, rows_G: Tensor) -> Tensor | None:
    return None if tensor_BX is None else tensor_BX[rows_G]
