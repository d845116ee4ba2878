"""One forward of the base over a drafted tree, as its forward takes it: ancestor bits for kernels, else a mask.

Letters: B batch, N nodes, C numbers of a state.
"""

import torch
from torch import Tensor

from euryale.base.base import Base
from euryale.base.kernel_llama import KernelLlama, TreeBits
from euryale.decoding.drafters.interface import Draft, Drafter
from euryale.decoding.kv_cache import KVCache, TreeMask
from euryale.decoding.tree.tree import Shape


class TreePass:
    """Reads the drafts of one drafter."""

    def __init__(self, base: Base, drafter: Drafter, num_slots: int) -> None:
        """Raises UserError where a backend that is named does not take such trees."""
        self.forward = base.forward()
        self.forward.reserve(num_slots)
        self._base, self._drafter, self._num_slots = base, drafter, num_slots
        self._masks: dict[int, TreeMask] = {}  # by number of nodes: a drafter has few
        self._bits: tuple[Tensor, TreeBits] | None = None  # of the last shape, by its ancestors
        # Kernels that fit no tree of this size leave it to torch's attention, unless they are named.
        attention = None
        if isinstance(self.forward, KernelLlama):
            attention = self.forward.attention(drafter.num_nodes, drafter.max_depth)
        is_kernel = attention is not None and (attention.backend != "torch" or base.forward_settings.backend != "auto")
        self.attention = attention if is_kernel else None

    def read(self, draft: Draft, cache: KVCache) -> Tensor:
        """The hidden states [B, N, C] at every node, and those of the drafter's layers."""
        cache.begin(draft.tokens_BN.shape[1])
        if self.attention is not None:
            assert isinstance(self.forward, KernelLlama)
            bits, layers = self.bits(draft.shape), self._drafter.layers
            return self.forward.read_tree(draft.tokens_BN, cache.slots(), bits, self.attention, layers)
        return self._read_masked(draft, cache)

    def bits(self, shape: Shape) -> TreeBits:
        """Made once for a shape that comes again, which is known by identity."""
        if self._bits is None or self._bits[0] is not shape.ancestors_RNN:
            self._bits = shape.ancestors_RNN, TreeBits.of(shape.depths_RN, shape.ancestors_RNN)
        return self._bits[1]

    def _read_masked(self, draft: Draft, cache: KVCache) -> Tensor:
        depths_RN, max_length = draft.shape.depths_RN, self._base.max_length
        if cache.is_uniform:
            positions_BN = (depths_RN + cache.lengths[0]).expand(len(draft.tokens_BN), -1)
        else:
            positions_BN = torch.tensor(cache.lengths, device=self._base.device)[:, None] + depths_RN
        if max(cache.lengths) + self._drafter.max_depth + 1 > max_length:
            # Nodes beyond the context are never kept; but a learned position table ends there, and dynamic rope would
            # change its frequencies for all rows.
            positions_BN = positions_BN.clamp(max=max_length - 1)
        N = draft.tokens_BN.shape[1]
        if N not in self._masks:
            self._masks[N] = TreeMask(N, self._num_slots, self._base.dtype, self._base.device)
        mask = self._masks[N].of(cache, draft.shape.ancestors_RNN)
        return self.forward.hidden(draft.tokens_BN, positions_BN, cache, mask, self._drafter.layers)
