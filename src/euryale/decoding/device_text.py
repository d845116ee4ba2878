"""Texts of the live rows in device memory: the token of slot s of a row's cache stands in column s.

A step on the device keeps them up to date itself (`DeviceText.put`); a step of the host brings what is new of its lists
(`TextRows.read`). Both write the same columns, so a row may go from one to the other.

Letters: B batch, S slots, P tokens that are written at once, N new ones of all rows.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class DeviceText(NamedTuple):
    """Prompt and answer so far of each row."""

    tokens_BS: Tensor  # int32; what stands after a row's root means nothing
    lengths_B: Tensor  # int: tokens before the root

    def put(self, starts_B: Tensor, tokens_BP: Tensor) -> None:
        """Writes tokens into slots starts_B[b] and those after it, all of which must exist."""
        slots_BP = starts_B[:, None] + torch.arange(tokens_BP.shape[1], device=tokens_BP.device)
        self.tokens_BS.scatter_(1, slots_BP.long(), tokens_BP.int())


class TextRows:
    """Keeps the live rows' texts in tokens_BS, where rows beyond the live ones mean nothing."""

    def __init__(self, tokens_BS: Tensor) -> None:
        """tokens_BS: int32, of all rows and slots that there will be."""
        self._tokens_BS = tokens_BS
        self._known: list[int] = []  # tokens of each row's text that are there, the root among them

    def add(self, row: int) -> None:
        """Makes `row` live with a new text: an ended row's place, or the next after the last."""
        self._known[row : row + 1] = [0]

    def swap_remove(self, row: int) -> None:
        """Removes an ended row; the last row takes its slot."""
        last = len(self._known) - 1
        self._tokens_BS[row] = self._tokens_BS[last]
        self._known[row] = self._known[last]
        self._known.pop()

    def read(self, texts: Sequence[Sequence[int]]) -> DeviceText:
        """Brings what is new of each row's text, whose last token is the root, in one transfer."""
        device = self._tokens_BS.device
        rows, slots, tokens = list[int](), list[int](), list[int]()
        for row, text in enumerate(texts):
            known = self._known[row]
            rows += [row] * (len(text) - known)
            slots += range(known, len(text))
            tokens += text[known:]
            self._known[row] = max(known, len(text))
        if rows:
            row_N, slot_N, token_N = torch.tensor([rows, slots, tokens], device=device).unbind(0)
            self._tokens_BS[row_N, slot_N] = token_N.int()
        lengths_B = torch.tensor([len(text) - 1 for text in texts], device=device)
        return DeviceText(self._tokens_BS[: len(texts), : max(map(len, texts))], lengths_B)

    def have_grown(self, lengths: Sequence[int]) -> None:
        """Steps on the device have written the rows' texts: so many tokens, and a root after them."""
        self._known = [length + 1 for length in lengths]
