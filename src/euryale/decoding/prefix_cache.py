"""Keys and values of earlier texts, for prompts that begin as one of them did.

They are kept in blocks of 64 tokens, each under the block before it and its own tokens, so a prompt finds the longest
beginning that was read before. Only for bases whose forward is exact (Base.is_exact): there a position's keys and
values are the same bits whatever pass computed them, so a text does not depend on what was decoded before it.

Letters: L layers, H key/value heads, S slots, E head width.
"""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import count
from typing import NamedTuple

from torch import Tensor

BLOCK = 64


class _Block(NamedTuple):
    number: int  # names it as the parent of others; never used again
    kv_L2HSE: Tensor


class PrefixCache:
    """At most num_tokens tokens; the blocks that were used longest ago go first."""

    def __init__(self, num_tokens: int) -> None:
        self._most = num_tokens // BLOCK
        self._blocks: OrderedDict[tuple[int, tuple[int, ...]], _Block] = OrderedDict()
        self._numbers = count(1)  # 0: the parent of first blocks

    def keep(self, tokens: Sequence[int], kv_L2HSE: Tensor) -> None:
        """Keeps the whole blocks of a text, whose keys and values lie in its first slots."""
        parent, used = 0, []
        for start in range(0, min(len(tokens) // BLOCK, self._most) * BLOCK, BLOCK):
            key = (parent, tuple(tokens[start : start + BLOCK]))
            if key not in self._blocks:
                block_kv = kv_L2HSE[:, :, :, start : start + BLOCK].clone()
                self._blocks[key] = _Block(next(self._numbers), block_kv)
            used.append(key)
            parent = self._blocks[key].number
        self._touch(used)
        while len(self._blocks) > self._most:
            self._blocks.popitem(last=False)

    def fill(self, prompt: Sequence[int], kv_L2HSE: Tensor) -> int:
        """Writes the longest known beginning of a prompt into the first slots; returns how many tokens it has.

        At least one token before the last is left to read: its hidden state is what the first draft starts from.
        """
        parent, used = 0, []
        for start in range(0, (len(prompt) - 2) // BLOCK * BLOCK, BLOCK):
            key = (parent, tuple(prompt[start : start + BLOCK]))
            block = self._blocks.get(key)
            if block is None:
                break
            kv_L2HSE[:, :, :, start : start + BLOCK] = block.kv_L2HSE
            used.append(key)
            parent = block.number
        self._touch(used)
        return len(used) * BLOCK

    def _touch(self, used: Sequence[tuple[int, tuple[int, ...]]]) -> None:
        """The first block of a text is the last to go: without it the others are not found."""
        for key in reversed(used):
            self._blocks.move_to_end(key)
