"""The token that followed, earlier in a text, the last tokens of a path.

The fast twin of heads/induction.py. On a device the ends of a level's paths are compared with all places of the text
(TextSearch), and nothing waits for it. Where the device is the processor itself there is nothing to wait for, and a
dictionary is a third of the time. The last three tokens of a path, its end, are one number.

Letters: B batch, P parents of a level, L tokens of an end, S slots of a text.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from euryale.decoding.device_text import DeviceText, TextRows
from euryale.heads.config import MOST_INDUCTION

_BITS = 21  # of a token in the number: vocabularies have up to 2 million; the two largest stand for no token
_TOKEN = (1 << _BITS) - 1
_BEFORE_A_TEXT, _BEFORE_A_PATH = _TOKEN, _TOKEN - 1  # not alike: what is not there equals nothing
_WHOLE = (1 << _BITS * MOST_INDUCTION) - 1


def build_ngram_index(
    longest: int, num_rows: int, num_slots: int, device: torch.device
) -> "NgramIndex | HostNgramIndex":
    """The index for this device. longest: tokens of a suffix at most; num_rows texts of at most num_slots tokens."""
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
    """The same over texts in device memory, brought there step by step."""

    def __init__(self, longest: int, num_rows: int, num_slots: int, device: torch.device) -> None:
        """longest: tokens of a suffix at most. num_rows texts of at most num_slots tokens."""
        self._longest = longest
        self._rows = TextRows(torch.zeros(num_rows, num_slots, dtype=torch.int32, device=device))
        self._search: TextSearch | None = None  # of this step

    def add(self, row: int) -> None:
        """Makes `row` live with a new text: an ended row's place, or the next after the last."""
        self._rows.add(row)

    def swap_remove(self, row: int) -> None:
        """Removes an ended row; the last row takes its slot."""
        self._rows.swap_remove(row)

    def read(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """Takes in what is new of each row's text, whose last token is the root; the ends of the texts, [B, 1]."""
        self._search = TextSearch(self._rows.read(texts), self._longest)
        return self._search.ends()

    def followers(self, ends_BP: Tensor) -> Tensor:
        """As TextSearch.followers, in the texts that were read last."""
        assert self._search is not None, "texts are read first"
        return self._search.followers(ends_BP)


class TextSearch:
    """The search through texts as they are at the beginning of a step.

    No shape depends on a length and nothing is read by the host, so a CUDA graph holds it. On a GPU the number of
    launches counts: 13 a level. A level takes two int32 and L bool for each parent and slot, less than the scores of
    its candidates where a vocabulary is larger than a context.
    """

    def __init__(self, text: DeviceText, longest: int) -> None:
        """longest: tokens of a suffix at most."""
        tokens_BS, device = text.tokens_BS, text.tokens_BS.device
        S = tokens_BS.shape[1]
        self._tokens_BS, self._lengths_B = tokens_BS, text.lengths_B
        self._shifts_L = torch.arange(0, _BITS * MOST_INDUCTION, _BITS, device=device)
        place_S = torch.arange(S, dtype=torch.int32, device=device)
        # The token of every place, and those one place and two places before it; -1 where there is none. What follows
        # places from the root on is not decided.
        of_places_BS = tokens_BS.masked_fill(place_S >= self._lengths_B[:, None], -1)
        earlier = [torch.nn.functional.pad(tokens_BS, (number, 0), value=-1)[:, :S] for number in range(1, longest)]
        self._before_LB1S = torch.stack([of_places_BS, *earlier])[:, :, None]
        # A later place goes before an earlier one, any of a longer suffix before those of shorter ones. The low bits
        # are where the follower stands: never in slot 0, which stands for nothing.
        bits = S.bit_length()
        self._ranks = [place_S + (1 + (number << bits)) for number in range(longest)]
        self._slot_mask = (1 << bits) - 1
        self._followers_BS = tokens_BS.long()
        self._followers_BS[:, 0].fill_(-1)

    def ends(self) -> Tensor:
        """The ends of the texts, [B, 1]. What lies before a text may be any token: no place has a suffix so long."""
        slots_BL = self._lengths_B[:, None].long() - torch.arange(MOST_INDUCTION, device=self._shifts_L.device)
        return (self._tokens_BS.gather(1, slots_BL.clamp(min=0)).long() << self._shifts_L).sum(-1, keepdim=True)

    def followers(self, ends_BP: Tensor) -> Tensor:
        """The token after the last place where each of these ends stood, the longest suffix first; [B, P].

        -1 where not even its last token did. Only what was decided before drafting counts: places before the root.
        """
        tokens_LBP = (ends_BP >> self._shifts_L[: len(self._ranks), None, None] & _TOKEN).int()
        is_equal_LBPS = self._before_LB1S == tokens_LBP[..., None]
        alike_BPS = is_equal_LBPS[0]
        found_BPS = alike_BPS * self._ranks[0]
        for rank_S, is_equal_BPS in zip(self._ranks[1:], is_equal_LBPS[1:], strict=True):
            alike_BPS = alike_BPS & is_equal_BPS
            found_BPS = torch.where(alike_BPS, rank_S, found_BPS)
        slots_BP = found_BPS.amax(-1) & self._slot_mask
        return self._followers_BS.gather(1, slots_BP.long())


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
