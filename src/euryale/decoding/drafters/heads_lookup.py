"""Copied tokens in the tree of the heads.

The heads fill their tree; the likeliest continuation found in the row's own text (lookup.py) follows that tree as far
as it says the same, and where they part it hangs its own chain of spare nodes. Siblings stay different, and text that
repeats is drafted further than the heads reach.

Letters: B batch, R rows of a shape, N nodes of the heads' tree, S spare nodes, C tokens of a continuation.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from euryale.base.base import Base
from euryale.decoding.drafters.interface import Draft, Drafter, DraftInput
from euryale.decoding.drafters.lookup import Memory
from euryale.decoding.drafters.text_lookup import TextLookup
from euryale.decoding.tree.tree import Shape


class HeadsLookupDrafter(Drafter):
    """A heads drafter and `spare` nodes more."""

    def __init__(self, base: Base, heads: Drafter, spare: int) -> None:
        self._base = base
        self._heads = heads
        self._spare = spare
        self._memories: list[Memory] = []
        self.num_nodes = heads.num_nodes + spare
        self.max_depth = heads.max_depth + spare
        self.layers, self.reads_text = heads.layers, heads.reads_text
        self.is_on_device = self.searches_text = heads.is_on_device

    def begin(self, num_rows: int, num_slots: int) -> "HeadsLookupDrafter":
        return HeadsLookupDrafter(self._base, self._heads.begin(num_rows, num_slots), self._spare)

    def add(self, row: int) -> None:
        self._heads.add(row)
        self._memories[row : row + 1] = [Memory()]

    def swap_remove(self, row: int) -> None:
        self._heads.swap_remove(row)
        self._memories[row] = self._memories[-1]
        self._memories.pop()

    def read(self, row: int, states_BTC: Tensor, tokens: Sequence[Sequence[int]], starts: Sequence[int]) -> None:
        self._heads.read(row, states_BTC, tokens, starts)

    def read_on_device(self, states_BPC: Tensor, tokens_BP: Tensor, starts_B: Tensor) -> None:
        self._heads.read_on_device(states_BPC, tokens_BP, starts_B)

    def have_read(self, lengths: Sequence[int]) -> None:
        self._heads.have_read(lengths)

    def propose(self, draft_input: DraftInput) -> Draft:
        if draft_input.text is not None:
            chain_BC, lengths_B = TextLookup(draft_input.text, self.max_depth).chain()
            return graft(self._heads.propose(draft_input), chain_BC, lengths_B, self._spare, self.max_depth)
        chains = []
        for memory, text in zip(self._memories, draft_input.texts, strict=True):
            memory.read(text)
            chains.append(memory.chain(self.max_depth))
        lengths_B = torch.tensor([len(chain) for chain in chains], device=self._base.device)
        padded = [chain + [0] * (self.max_depth - len(chain)) for chain in chains]
        draft = self._heads.propose(draft_input)
        return graft(draft, torch.tensor(padded, device=self._base.device), lengths_B, self._spare, self.max_depth)


def graft(draft: Draft, chain_BC: Tensor, lengths_B: Tensor, spare: int, max_depth: int) -> Draft:
    """The draft and `spare` nodes more, which go on where the draft stops saying what the chain says.

    Row b's chain is the first lengths_B[b] tokens of chain_BC. Nothing waits for the device.
    """
    B, N = draft.tokens_BN.shape
    C = chain_BC.shape[1]
    depths_BN = draft.shape.depths_RN.expand(B, N)
    wanted_BN = chain_BC.gather(1, (depths_BN - 1).clamp(0, C - 1))
    is_apart_BN = (draft.tokens_BN != wanted_BN) | (depths_BN > lengths_B[:, None])
    if draft.is_real_BN is not None:
        is_apart_BN |= ~draft.is_real_BN
    is_apart_BN[:, 0].fill_(False)
    is_shared_BN = ~(draft.shape.ancestors_RNN & is_apart_BN[:, None]).any(-1)
    shared_depth_B1, fork_B1 = torch.where(is_shared_BN, depths_BN, -1).max(1, keepdim=True)

    index_BS = shared_depth_B1 + torch.arange(spare, device=chain_BC.device)
    tokens_BS = chain_BC.gather(1, index_BS.clamp(max=C - 1))
    is_real_BS = index_BS < lengths_B[:, None]
    above_BS = torch.arange(N - 1, N - 1 + spare, device=chain_BC.device).repeat(B, 1)
    above_BS[:, :1] = fork_B1
    is_real_BN = torch.ones_like(is_apart_BN) if draft.is_real_BN is None else draft.is_real_BN
    parents_BN = torch.cat([draft.shape.parents_RN.expand(B, N), above_BS], 1)
    return Draft(
        torch.cat([draft.tokens_BN, tokens_BS], 1),
        Shape.of_parents(parents_BN, max_depth),
        torch.cat([is_real_BN, is_real_BS], 1),
    )
