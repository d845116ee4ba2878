"""What followed in this text when the last tokens of a path stood here before?

The fast twin of model/induction.py: the tokens of all rows lie in one buffer on the device, and every level compares
the ends of its paths with all of it at once. Nothing waits for the device.

Letters: B batch, P parents of a level, L longest suffix, S tokens of a text.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

_NO_TOKEN = -2  # before the beginning of a text


class Recall:
    """The tokens of the rows, and what followed each."""

    def __init__(self, longest: int, num_rows: int, num_slots: int, device: torch.device) -> None:
        """longest: tokens of a suffix at most. num_rows texts of num_slots tokens; longer ones make it grow."""
        self._longest = longest
        self._num_rows = num_rows
        self._device = device
        self._lengths: list[int] = []  # of each row's text so far
        self._resize(num_slots)

    def admit(self, row: int) -> None:
        """A new text takes this row: that of one that ended, or the next behind the last."""
        self._lengths[row : row + 1] = [0]
        self._ids_BS[row] = -1

    def retire(self, row: int) -> None:
        """The row has ended; the last one goes on in its place."""
        last = len(self._lengths) - 1
        self._ids_BS[row], self._next_BS[row] = self._ids_BS[last], self._next_BS[last]
        self._lengths[row] = self._lengths[last]
        self._lengths.pop()

    def read(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """Takes in what is new of each row's text, whose last token is the root; the ends of the texts, [B, 1, L]."""
        L = self._longest
        if max(map(len, texts)) > self._next_BS.shape[1]:
            self._resize(2 * max(map(len, texts)))
        for row, text in enumerate(texts):
            first, behind = max(self._lengths[row] - 1, 0), len(text) - 1  # the root has no token behind it yet
            if first < behind:
                new_N = torch.tensor(text[first:], device=self._device)
                self._ids_BS[row, L + first : L + behind] = new_N[:-1]
                self._next_BS[row, first:behind] = new_N[1:]
            self._lengths[row] = len(text)
        ends = [[_NO_TOKEN] * (L - len(text)) + list(text[-L:]) for text in texts]
        return torch.tensor(ends, device=self._device)[:, None]

    def followers(self, ends_BPL: Tensor) -> Tensor:
        """The token behind the last place where each of these ends stood, the longest suffix first; [B, P].

        -1 where not even its last token did. Only what was decided before drafting counts: places before the root.
        """
        L, B, S = self._longest, len(ends_BPL), max(self._lengths) - 1
        if S < 1:
            return torch.full_like(ends_BPL[..., 0], -1)
        alike_BPS = self._ids_BS[:B, None, L : L + S] == ends_BPL[..., L - 1, None]
        rank_BPS = alike_BPS * self._rank_LS[0, :S]
        for back in range(1, L):  # the token so many before the last one
            before_B1S = self._ids_BS[:B, None, L - back : L - back + S]
            alike_BPS = alike_BPS & (before_B1S == ends_BPL[..., L - 1 - back, None])
            rank_BPS = torch.where(alike_BPS, self._rank_LS[back, :S], rank_BPS)
        best_BP = rank_BPS.amax(-1)
        place_BP = (best_BP - 1).remainder(self._next_BS.shape[1])
        return self._next_BS[:B].gather(1, place_BP).masked_fill(best_BP == 0, -1)

    def _resize(self, num_slots: int) -> None:
        """What was read is read again. `longest` places before the text equal no token, nor do those behind it."""
        num_rows = self._num_rows
        L, device = self._longest, self._device
        self._ids_BS = torch.full((num_rows, L + num_slots), -1, device=device)
        self._next_BS = torch.full((num_rows, num_slots), -1, device=device)
        # A later place goes before an earlier one, and any of a longer suffix before those of shorter ones.
        self._rank_LS = torch.arange(1, L * num_slots + 1, device=device).view(L, num_slots)
        self._lengths = [0] * len(self._lengths)


def extend_ends(ends_BPL: Tensor, slots: Tensor, tokens_BP: Tensor) -> Tensor:
    """The ends of paths one token longer: `slots` says whose path each token continues ([P], or [B, P] by row)."""
    return torch.cat([of_slots(ends_BPL, slots)[..., 1:], tokens_BP[..., None]], -1)


def of_slots(parts_BPx: Tensor, slots: Tensor) -> Tensor:
    """What belongs to these slots of a level, [P] or [B, P] by row."""
    if slots.ndim == 1:
        return parts_BPx[:, slots]
    return parts_BPx[torch.arange(len(slots), device=slots.device)[:, None], slots]
