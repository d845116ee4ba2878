"""The token that followed, earlier in a text, the last tokens of a path.

The fast twin of heads/induction.py. The last three tokens of a place are one number, so that a level compares the ends
of its paths with all places of the text, for all lengths of a suffix, in one operation. Nothing waits for the device.
Where the device is the processor itself there is nothing to wait for, and a dictionary is a third of the time.

Letters: B batch, P parents of a level, L suffix lengths, S columns: one that stands for nothing, then a text's places.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from euryale.heads.config import MOST_INDUCTION

_BITS = 21  # of a token in the number: vocabularies have up to 2 million; the two largest stand for no token
_TOKEN = (1 << _BITS) - 1
_BEFORE_A_TEXT, _BEFORE_A_PATH = _TOKEN, _TOKEN - 1  # not alike: what is not there equals nothing
_WHOLE = (1 << _BITS * MOST_INDUCTION) - 1


def build_ngram_index(
    longest: int, num_rows: int, num_slots: int, device: torch.device
) -> "NgramIndex | HostNgramIndex":
    """The index for this device. longest: tokens of a suffix at most; num_rows texts of num_slots tokens at first."""
    return HostNgramIndex(longest) if device.type == "cpu" else NgramIndex(longest, num_rows, num_slots, device)


class HostNgramIndex:
    """For each row and length of a suffix a dictionary from suffixes to what followed them last."""

    def __init__(self, longest: int) -> None:
        self._masks = [(1 << _BITS * length) - 1 for length in range(longest, 0, -1)]
        self._rows: list[list[dict[int, int]]] = []
        self._lengths: list[int] = []  # of each row's text so far

    def add(self, row: int) -> None:
        """As in NgramIndex."""
        self._rows[row : row + 1] = [[{} for _ in self._masks]]
        self._lengths[row : row + 1] = [0]

    def swap_remove(self, row: int) -> None:
        """As in NgramIndex."""
        self._rows[row], self._lengths[row] = self._rows[-1], self._lengths[-1]
        self._rows.pop()
        self._lengths.pop()

    def read(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """As in NgramIndex."""
        for row, text in enumerate(texts):
            first = max(self._lengths[row] - 1, 0)
            for suffix, following in zip(_suffixes(text, first, len(text) - 1), text[first + 1 :], strict=True):
                for mask, follower in zip(self._masks, self._rows[row], strict=True):
                    follower[suffix & mask] = following
            self._lengths[row] = len(text)
        return torch.tensor([[_end(text)] for text in texts])

    def followers(self, ends_BP: Tensor) -> Tensor:
        """As in NgramIndex."""
        return torch.tensor(
            [[self._find(row, end) for end in ends] for row, ends in zip(self._rows, ends_BP.tolist(), strict=True)]
        )

    def _find(self, row: list[dict[int, int]], end: int) -> int:
        for mask, follower in zip(self._masks, row, strict=True):
            found = follower.get(end & mask)
            if found is not None:
                return found
        return -1


class NgramIndex:
    """What stands where in each row's text, and what followed it."""

    def __init__(self, longest: int, num_rows: int, num_slots: int, device: torch.device) -> None:
        """longest: tokens of a suffix at most. num_rows texts of num_slots tokens; longer ones make it grow."""
        self._longest = longest
        self._num_rows = num_rows
        self._device = device
        self._masks_L = torch.tensor([(1 << _BITS * length) - 1 for length in range(1, longest + 1)], device=device)
        self._lengths: list[int] = []  # of each row's text so far
        self._resize(num_slots)

    def add(self, row: int) -> None:
        """Makes `row` live with a new text: an ended row's place, or the next after the last."""
        self._lengths[row : row + 1] = [0]
        self._suffixes_BLS[row] = -1

    def swap_remove(self, row: int) -> None:
        """Removes an ended row; the last row takes its slot."""
        last = len(self._lengths) - 1
        self._both_BLS[row] = self._both_BLS[last]
        self._lengths[row] = self._lengths[last]
        self._lengths.pop()

    def read(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """Takes in what is new of each row's text, whose last token is the root; the ends of the texts, [B, 1]."""
        if max(map(len, texts)) >= self._both_BLS.shape[-1]:
            self._resize(2 * max(map(len, texts)))
        new: list[list[int]] = []  # all rows' in one transfer
        for row, text in enumerate(texts):
            first = max(self._lengths[row] - 1, 0)  # the root, in whose place nothing followed yet
            suffixes = _suffixes(text, first, len(text) - 1)
            for place, (suffix, following) in enumerate(zip(suffixes, text[first + 1 :], strict=True), start=first):
                new.append([row, 1 + place, *(suffix & mask for mask in self._masks), following])
            self._lengths[row] = len(text)
        if new:
            new_Nx = torch.tensor(new, device=self._device)
            self._both_BLS[new_Nx[:, 0], :, new_Nx[:, 1]] = new_Nx[:, 2:]
        return torch.tensor([[_end(text)] for text in texts], device=self._device)

    def followers(self, ends_BP: Tensor) -> Tensor:
        """The token after the last place where each of these ends stood, the longest suffix first; [B, P].

        -1 where not even its last token did. Only what was decided before drafting counts: places before the root.
        """
        B, S = len(ends_BP), max(self._lengths)
        alike_BPLS = self._suffixes_BLS[:B, None, :, :S] == (ends_BP[..., None] & self._masks_L)[..., None]
        best_BP = (alike_BPLS * self._rank_LS[:, :S]).flatten(2).amax(-1)
        return self._next_BS[:B].gather(1, best_BP & self._place_mask)

    def _resize(self, num_slots: int) -> None:
        """What was read is read again. Column 0 equals nothing, and -1 follows it."""
        num_columns = 1 << (num_slots + 1).bit_length()
        self._masks = self._masks_L.tolist()
        self._both_BLS = torch.full((self._num_rows, self._longest + 1, num_columns), -1, device=self._device)
        self._suffixes_BLS, self._next_BS = self._both_BLS[:, :-1], self._both_BLS[:, -1]
        # A later place goes before an earlier one, and any of a longer suffix before those of shorter ones.
        self._rank_LS = torch.arange(self._longest * num_columns, device=self._device).view(self._longest, num_columns)
        self._place_mask = num_columns - 1
        self._lengths = [0] * len(self._lengths)


def extend_ends(ends_BP: Tensor, slots: Tensor, tokens_BP: Tensor) -> Tensor:
    """The ends of paths one token longer: `slots` says whose path each token continues ([P], or [B, P] by row)."""
    return ((of_slots(ends_BP, slots) << _BITS) & _WHOLE) | tokens_BP


def of_slots(parts_BPx: Tensor, slots: Tensor) -> Tensor:
    """What belongs to these slots of a level, [P] or [B, P] by row."""
    if slots.ndim == 1:
        return parts_BPx[:, slots]
    return parts_BPx[torch.arange(len(slots), device=slots.device)[:, None], slots]


def _suffixes(text: Sequence[int], first: int, end: int) -> list[int]:
    """The last three tokens of every place from `first` to before `end`, each as one number."""
    start = max(first - MOST_INDUCTION + 1, 0)
    suffix = _joined([_BEFORE_A_TEXT] * MOST_INDUCTION)
    found = []
    for token in text[start:end]:
        suffix = ((suffix << _BITS) & _WHOLE) | token
        found.append(suffix)
    return found[first - start :]


def _end(text: Sequence[int]) -> int:
    """The same of a text's last place, where what lies before the text equals nothing."""
    return _joined([_BEFORE_A_PATH] * (MOST_INDUCTION - len(text)) + list(text[-MOST_INDUCTION:]))


def _joined(tokens: Sequence[int]) -> int:
    number = 0
    for token in tokens:
        number = number << _BITS | token
    return number
