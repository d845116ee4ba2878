"""Keys and values of the live rows, and the attention mask of a tree over them.

One cache is allocated for all rows that are ever decoded at once: every layer, row and slot in one tensor. A forward
writes its N nodes after each row's committed length; `commit` moves the accepted nodes (at most one a depth) to the
front and adds to the length. A rejected node costs nothing: the next step overwrites it, and no mask shows it before.

The live rows are the first ones, as many as there are lengths, so a forward reads a plain view whatever their number.
A new prompt is read into a part of its own. When a row ends, the last row is copied into its place (swap-remove).

The cache owns the lengths; no other class adds to a position.

Letters: L layers, B batch, H key/value heads, S slots, D head width, N nodes or tokens of a forward.
"""

import copy
import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, CacheLayerMixin

from euryale.base.kernel_llama import Slots

_STEP = 16


class _Layer(CacheLayerMixin):
    """One layer's view of the cache, in the form that transformers asks of a cache layer."""

    is_compileable = False
    is_sliding = False

    def __init__(self, cache: "KVCache", keys_BHSD: Tensor, values_BHSD: Tensor) -> None:
        super().__init__()
        self.cache = cache
        self.keys: Tensor = keys_BHSD
        self.values: Tensor = values_BHSD
        self.is_initialized = True

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: the cache exists before the first forward."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Writes [B, H, N, D] after the committed slots; returns the slots that the forward may attend to."""
        cache, N = self.cache, key_states.shape[-2]
        B = len(cache.lengths)
        if cache.rows_B1 is None:
            start = cache.lengths[0]
            self.keys[:B, :, start : start + N] = key_states
            self.values[:B, :, start : start + N] = value_states
        else:
            self.keys[cache.rows_B1, :, cache.slots_BN] = key_states.transpose(1, 2)
            self.values[cache.rows_B1, :, cache.slots_BN] = value_states.transpose(1, 2)
        return self.keys[:B, :, : cache.bound], self.values[:B, :, : cache.bound]

    def get_mask_sizes(self, query_length: Any) -> tuple[int, int]:
        return self.cache.bound, 0

    def get_seq_length(self) -> int:
        return max(self.cache.lengths)

    def get_max_length(self) -> int:
        return self.cache.num_slots

    get_max_cache_shape = get_max_length  # its name before transformers 5.20

    def reset(self) -> None:
        self.cache.lengths = [0] * len(self.cache.lengths)


class KVCache(Cache):
    """Preallocated keys and values of at most `num_rows` rows of `num_slots` tokens, uncommitted nodes included.

    A new cache holds no row; `add` makes a row live.
    """

    def __init__(
        self, config: PreTrainedConfig, num_rows: int, num_slots: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        config = config.get_text_config()
        num_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        # Up to _STEP more: a forward may read whole groups of slots, and one that no query sees.
        shape = (config.num_hidden_layers, 2, num_rows, num_heads, (num_slots // _STEP + 1) * _STEP, head_dim)
        # Zeros once: a never-written slot is masked, but NaN x 0 would still be NaN.
        self.kv = torch.zeros(shape, dtype=dtype, device=device)
        self.num_rows, self.num_slots = num_rows, num_slots
        self.lengths: list[int] = []  # committed tokens of the live rows, which come first
        self.bound = 0
        self.rows_B1: Tensor | None = None
        self.slots_BN: Tensor | None = None
        super().__init__(layers=[_Layer(self, keys, values) for keys, values in self.kv.unbind(0)])

    @property
    def is_uniform(self) -> bool:
        """Every row is equally long: plain slices serve instead of index tensors."""
        return min(self.lengths) == max(self.lengths)

    def part(self, row: int, num_rows: int) -> "KVCache":
        """A cache of these rows alone, at length 0, in the same memory: a forward over it leaves other rows out."""
        part = copy.copy(self)
        part.kv = self.kv[:, :, row : row + num_rows]
        part.lengths = [0] * num_rows
        part.layers = [_Layer(part, keys, values) for keys, values in part.kv.unbind(0)]
        return part

    def add(self, row: int, length: int) -> None:
        """Makes `row` live: an ended row's place, or the next after the last. length: what a part wrote."""
        self.lengths[row : row + 1] = [length]

    def swap_remove(self, row: int) -> None:
        """Removes an ended row. The last row takes its slot: its committed keys and values are copied, once."""
        last = len(self.lengths) - 1
        length = self.lengths.pop()
        if row != last:
            self.copy_row(last, row, length)
            self.lengths[row] = length

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Copies the first `length` slots of a row; nothing happens where both are the same."""
        if source != target:
            self.kv[:, :, target, :, :length] = self.kv[:, :, source, :, :length]

    def wipe(self, row: int) -> None:
        """Zeroes keys and values that may be NaN: no mask hides those, because 0 x NaN is NaN."""
        self.kv[:, :, row] = 0.0

    def begin(self, num_tokens: int) -> None:
        """Sets where the next forward's tokens are written. Call it before every forward."""
        self.bound = max(self.lengths) + num_tokens
        assert self.bound <= self.num_slots, f"the cache of {self.num_slots} slots is full: {self.bound} are needed"
        self.rows_B1 = self.slots_BN = None
        if not self.is_uniform:
            device = self.kv.device
            starts_B1 = torch.tensor(self.lengths, device=device)[:, None]
            self.slots_BN = starts_B1 + torch.arange(num_tokens, device=device)
            self.rows_B1 = torch.arange(len(self.lengths), device=device)[:, None]

    def slots(self) -> Slots:
        """The live rows, as the kernel forward takes them."""
        lengths_B = torch.tensor(self.lengths, dtype=torch.int32, device=self.kv.device)
        return Slots(self.kv[:, :, : len(self.lengths)], lengths_B)

    def stores(self, width: int | None = None) -> list[Callable[[Tensor], tuple[Tensor, Tensor]]]:
        """For each layer a function that stores the next forward's keys and values, [B, N, 2, H, D]; see Store.

        The same as every layer's `update`, with views that are made once for all layers. width: slots of what it gives
        back, if not `bound`; those from `bound` on hold anything.
        """
        B, bound = len(self.lengths), self.bound
        live = self.kv[:, :, :B]
        seen = live[..., : width or bound, :].flatten(0, 1).unbind(0)
        if self.rows_B1 is None:
            targets = live[..., self.lengths[0] : bound, :].permute(0, 2, 4, 1, 3, 5).unbind(0)
            writes: list[Callable[[Tensor], Any]] = [target.copy_ for target in targets]
        else:
            index = (slice(None), self.rows_B1, slice(None), self.slots_BN)
            writes = [partial(operator.setitem, kv, index) for kv in self.kv.unbind(0)]
        return [
            partial(_store, write, keys_BHSD, values_BHSD)
            for write, keys_BHSD, values_BHSD in zip(writes, seen[::2], seen[1::2], strict=True)
        ]

    def commit(self, paths: list[list[int]]) -> None:
        """Keeps, for each row, the given nodes of the last forward (ascending; [] keeps nothing of a row).

        Moving is safe in place: all sources are read before the first is written.
        """
        rows, sources, targets = [], [], []
        for row, (path, length) in enumerate(zip(paths, self.lengths, strict=True)):
            for slot, node in enumerate(path):
                if slot != node:
                    rows.append(row)
                    sources.append(length + node)
                    targets.append(length + slot)
            self.lengths[row] += len(path)
        if not rows:
            return
        if len(self.lengths) == 1:
            # One run of slots at the end: an index_select and a slice, cheaper than two index tensors.
            # Of this row alone: another may hold a prompt that is being read.
            row_kv = self.kv[:, :, :1]
            moved = row_kv.index_select(4, torch.tensor(sources, device=self.kv.device))
            row_kv[:, :, :, :, targets[0] : targets[0] + len(targets)] = moved
            return
        row_M, source_M, target_M = torch.tensor([rows, sources, targets], device=self.kv.device)
        self.kv[:, :, row_M, :, target_M] = self.kv[:, :, row_M, :, source_M]


def _store(
    write: Callable[[Tensor], Any], keys_BHSD: Tensor, values_BHSD: Tensor, new_BN2HD: Tensor
) -> tuple[Tensor, Tensor]:
    write(new_BN2HD)
    return keys_BHSD, values_BHSD


class TreeMask:
    """The attention mask of one forward: each node sees its row's committed slots and its own ancestors."""

    def __init__(self, num_nodes: int, num_slots: int, dtype: torch.dtype, device: torch.device | str) -> None:
        self.num_nodes = num_nodes
        self.dtype = dtype
        self._num_slots = num_slots
        self._shown: Tensor | None = None
        # Columns: num_slots of prefix, then the nodes. A row of length n is a view of it that starts n columns
        # before the nodes, so equally long rows (always so for one) cost no work in a step.
        self._template = torch.zeros(num_nodes, num_slots + num_nodes, dtype=dtype, device=device)

    def of(self, cache: KVCache, ancestors_RNN: Tensor) -> Tensor | None:
        """[1 or B, 1, N, bound], to be added to the scores; None when one node sees everything there is.

        ancestors_RNN (R = 1, or B where rows differ) must not be written to afterwards: it is known by identity.
        """
        N = self.num_nodes
        hidden = torch.finfo(self.dtype).min
        if cache.is_uniform and len(ancestors_RNN) == 1:
            if N == 1:
                return None
            if self._shown is not ancestors_RNN:
                self._shown = ancestors_RNN
                self._template[:, self._num_slots :].zero_().masked_fill_(~ancestors_RNN[0], hidden)
            return self._template[None, None, :, self._num_slots - cache.lengths[0] :]
        lengths_B1 = torch.tensor(cache.lengths, device=ancestors_RNN.device)[:, None]
        return draw_mask(ancestors_RNN, lengths_B1, cache.bound, self.dtype)


def draw_mask(seen_RNM: Tensor, lengths_B1: Tensor, num_slots: int, dtype: torch.dtype) -> Tensor:
    """[B, 1, N, num_slots]: N queries see the first lengths_B1 slots of their row; of the M slots after, seen_RNM."""
    M = seen_RNM.shape[2]
    node_BS = torch.arange(num_slots, device=lengths_B1.device) - lengths_B1  # below 0: a committed slot
    B, S = node_BS.shape
    N = seen_RNM.shape[1]
    nodes_BNS = node_BS.clamp(0, M - 1)[:, None].expand(B, N, S)
    seen_BNS = seen_RNM.expand(B, N, M).gather(2, nodes_BNS) & (node_BS < M)[:, None]
    seen_B1NS = (seen_BNS | (node_BS < 0)[:, None])[:, None]
    mask = torch.zeros(seen_B1NS.shape, dtype=dtype, device=seen_B1NS.device)
    return mask.masked_fill_(~seen_B1NS, torch.finfo(dtype).min)
