"""Where do keys and values live, and what does a step keep of them?

One arena is allocated for all that is ever decoded at once: every layer, row and slot in one tensor. A forward
writes its N nodes behind each row's committed length; `commit` moves the accepted ones (at most depth rows) to the
front and adds to the length. A rejected node costs nothing: the next step writes over it, and no mask shows it before.

The rows that live are the first ones, as many as there are lengths, so a forward reads a plain view however many there
are. A prompt that arrives is read into a part of its own; where a row ends, the last one is copied into its place.

The arena owns the lengths; nobody else adds to a position.

Letters: L layers, B batch, H key/value heads, S slots, D head width, N nodes or tokens of a forward.
"""

import copy
import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, CacheLayerMixin


class _Layer(CacheLayerMixin):
    """One layer's view of the arena, in the form that transformers asks of a cache layer."""

    is_compileable = False
    is_sliding = False

    def __init__(self, arena: "Arena", keys_BHSD: Tensor, values_BHSD: Tensor) -> None:
        super().__init__()
        self.arena = arena
        self.keys: Tensor = keys_BHSD
        self.values: Tensor = values_BHSD
        self.is_initialized = True

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: the arena exists before the first forward."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Writes [B, H, N, D] behind the committed slots; returns the slots the forward may look at."""
        arena, N = self.arena, key_states.shape[-2]
        B = len(arena.lengths)
        if arena.rows_B1 is None:
            start = arena.lengths[0]
            self.keys[:B, :, start : start + N] = key_states
            self.values[:B, :, start : start + N] = value_states
        else:
            self.keys[arena.rows_B1, :, arena.slots_BN] = key_states.transpose(1, 2)
            self.values[arena.rows_B1, :, arena.slots_BN] = value_states.transpose(1, 2)
        return self.keys[:B, :, : arena.bound], self.values[:B, :, : arena.bound]

    def get_mask_sizes(self, query_length: Any) -> tuple[int, int]:
        return self.arena.bound, 0

    def get_seq_length(self) -> int:
        return max(self.arena.lengths)

    def get_max_length(self) -> int:
        return self.arena.num_slots

    get_max_cache_shape = get_max_length  # its name before transformers 5.20

    def reset(self) -> None:
        self.arena.lengths = [0] * len(self.arena.lengths)


class Arena(Cache):
    """Preallocated keys and values of at most `num_rows` rows of `num_slots` tokens, uncommitted nodes included.

    A new arena holds that many rows of length 0; `lengths.clear()` leaves none, for `admit` to fill.
    """

    def __init__(
        self, config: PreTrainedConfig, num_rows: int, num_slots: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        config = config.get_text_config()
        num_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape = (config.num_hidden_layers, 2, num_rows, num_heads, num_slots, head_dim)
        # Zeros once: a never-written slot is masked, but NaN x 0 would still be NaN.
        self.kv = torch.zeros(shape, dtype=dtype, device=device)
        self.num_slots = num_slots
        self.lengths = [0] * num_rows  # of the live rows, which come first
        self.bound = 0
        self.rows_B1: Tensor | None = None
        self.slots_BN: Tensor | None = None
        super().__init__(layers=[_Layer(self, keys, values) for keys, values in self.kv.unbind(0)])

    @property
    def is_uniform(self) -> bool:
        """Every row is equally long: plain slices serve instead of index tensors."""
        return min(self.lengths) == max(self.lengths)

    def part(self, row: int, num_rows: int) -> "Arena":
        """An arena of nothing but these rows, at length 0, in the same memory: the others do not wait for it."""
        part = copy.copy(self)
        part.kv = self.kv[:, :, row : row + num_rows]
        part.lengths = [0] * num_rows
        part.layers = [_Layer(part, keys, values) for keys, values in part.kv.unbind(0)]
        return part

    def admit(self, row: int, lengths: Sequence[int]) -> None:
        """What a part wrote from `row` on lives now: in the place of rows that ended, or behind the last."""
        self.lengths[row : row + len(lengths)] = lengths

    def retire(self, row: int) -> None:
        """The row has ended. The last one goes on in its place: its committed slots are copied, once."""
        last = len(self.lengths) - 1
        length = self.lengths.pop()
        if row != last:
            self.kv[:, :, row, :, :length] = self.kv[:, :, last, :, :length]
            self.lengths[row] = length

    def wipe(self, row: int) -> None:
        """Forgets keys and values that may be no numbers: no mask hides those, because 0 x NaN is NaN."""
        self.kv[:, :, row] = 0.0

    def begin(self, num_tokens: int) -> None:
        """Says where the next forward's tokens go. Call it before every forward."""
        self.bound = max(self.lengths) + num_tokens
        assert self.bound <= self.num_slots, f"the arena of {self.num_slots} slots is full: {self.bound} are needed"
        self.rows_B1 = self.slots_BN = None
        if not self.is_uniform:
            device = self.kv.device
            starts_B1 = torch.tensor(self.lengths, device=device)[:, None]
            self.slots_BN = starts_B1 + torch.arange(num_tokens, device=device)
            self.rows_B1 = torch.arange(len(self.lengths), device=device)[:, None]

    def stores(self) -> list[Callable[[Tensor], tuple[Tensor, Tensor]]]:
        """For each layer what takes the next forward's keys and values, [B, N, 2, H, D]; see lean.Store.

        Does what every layer's `update` does, with views that are made once for all layers.
        """
        B, bound = len(self.lengths), self.bound
        live = self.kv[:, :, :B]
        seen = live[..., :bound, :].flatten(0, 1).unbind(0)
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
            moved = self.kv.index_select(4, torch.tensor(sources, device=self.kv.device))
            self.kv[:, :, :, :, targets[0] : targets[0] + len(targets)] = moved
            return
        row_M, source_M, target_M = torch.tensor([rows, sources, targets], device=self.kv.device)
        self.kv[:, :, row_M, :, target_M] = self.kv[:, :, row_M, :, source_M]


def _store(
    write: Callable[[Tensor], Any], keys_BHSD: Tensor, values_BHSD: Tensor, new_BN2HD: Tensor
) -> tuple[Tensor, Tensor]:
    write(new_BN2HD)
    return keys_BHSD, values_BHSD


class TreeMask:
    """Makes the attention mask of one forward: each node sees its row's committed slots and its own ancestors."""

    def __init__(self, num_nodes: int, num_slots: int, dtype: torch.dtype, device: torch.device | str) -> None:
        self.num_nodes = num_nodes
        self.dtype = dtype
        self._num_slots = num_slots
        self._shown: Tensor | None = None
        # Columns: num_slots of prefix, then the nodes. A row of length n is a view of it that starts n columns
        # before the nodes, so equally long rows (always so for one) cost no work in a step.
        self._template = torch.zeros(num_nodes, num_slots + num_nodes, dtype=dtype, device=device)

    def of(self, arena: Arena, ancestors_RNN: Tensor) -> Tensor | None:
        """[1 or B, 1, N, bound], to be added to the scores; None when one node sees everything there is.

        ancestors_RNN (R = 1, or B where rows differ) must not be written to afterwards: it is known by identity.
        """
        N = self.num_nodes
        hidden = torch.finfo(self.dtype).min
        if arena.is_uniform and len(ancestors_RNN) == 1:
            if N == 1:
                return None
            if self._shown is not ancestors_RNN:
                self._shown = ancestors_RNN
                self._template[:, self._num_slots :].zero_().masked_fill_(~ancestors_RNN[0], hidden)
            return self._template[None, None, :, self._num_slots - arena.lengths[0] :]
        lengths_B1 = torch.tensor(arena.lengths, device=ancestors_RNN.device)[:, None]
        return draw_mask(ancestors_RNN, lengths_B1, arena.bound, self.dtype)


def draw_mask(seen_RNM: Tensor, lengths_B1: Tensor, num_slots: int, dtype: torch.dtype) -> Tensor:
    """[B, 1, N, num_slots]: N queries see the first lengths_B1 slots of their row, and of the M behind what is said."""
    M = seen_RNM.shape[2]
    node_BS = torch.arange(num_slots, device=lengths_B1.device) - lengths_B1  # below 0: a committed slot
    B, S = node_BS.shape
    N = seen_RNM.shape[1]
    nodes_BNS = node_BS.clamp(0, M - 1)[:, None].expand(B, N, S)
    seen_BNS = seen_RNM.expand(B, N, M).gather(2, nodes_BNS) & (node_BS < M)[:, None]
    seen_B1NS = (seen_BNS | (node_BS < 0)[:, None])[:, None]
    mask = torch.zeros(seen_B1NS.shape, dtype=dtype, device=seen_B1NS.device)
    return mask.masked_fill_(~seen_B1NS, torch.finfo(dtype).min)
