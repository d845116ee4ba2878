"""Drafts of the one layer of an EAGLE checkpoint.

Of the text it keeps keys and values, nothing else (heads/eagle.py): the step tells it the states of what was committed,
and a prompt's as it is read. The last committed position is the first link of every path: it is entered again with the
root, and each level of the tree goes on from the states that its parents' level answered. A path carries its own
keys and values along, so a rejected node leaves nothing in the cache and no mask tells siblings apart.

Letters: B batch, R rows that differ (1 or B), T tokens, P parents of a level, J links of a path, H attention heads, E
head width, D width, C numbers of all states, F inner width, S slots, V vocabulary.
"""

from collections.abc import Sequence
from copy import copy
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import silu
from transformers import PreTrainedConfig

from euryale.base.base import Base
from euryale.decoding.drafters.best import top_k_of
from euryale.decoding.drafters.head_matrices import TokenTable, draft_dtype
from euryale.decoding.drafters.interface import Draft, Drafter, DraftInput
from euryale.decoding.drafters.ngram_index import of_slots
from euryale.decoding.drafters.tree_growth import Levels, build_growth
from euryale.decoding.kv_cache import KVCache
from euryale.decoding.tree.calibration import Calibration
from euryale.decoding.tree.tree import DynamicTree, Tree
from euryale.heads.eagle import Entry, attend, rotations, turned
from euryale.heads.heads import Heads
from euryale.kernels.packed_linear import Linear, packed


class EagleMatrices:
    """The layer, ready to be asked: the fast twin of EagleLayer's enter and leave.

    All that reads the same is one product, in the dtype that heads are asked in.
    """

    @torch.no_grad()
    def __init__(self, base: Base, heads: Heads) -> None:
        assert heads.layer is not None, "check_heads has seen it"
        self.device, self.layer, self.draft_ids = base.device, heads.layer, heads.draft_ids
        self.dtype = draft_dtype(base)
        self._embed = TokenTable(base, self.dtype)
        layer = self.layer
        self.shape = (layer.num_attention_heads, layer.head_width)
        self._num_attended = layer.num_attention_heads * layer.head_width
        of_text = torch.cat([layer.key.weight, layer.value.weight])
        whole = torch.cat([layer.query.weight, of_text, layer.inner.weight])
        bias = torch.cat([layer.inner.bias.new_zeros(3 * self._num_attended), layer.inner.bias])
        self._of_text = self._product(of_text)
        self._whole = self._product(whole, bias)
        self._attended_in = self._product(layer.attended_in.weight)
        self._out = self._product(layer.out.weight)
        self._output = self._product(heads.draft_weight(0, base.lm_head_weight))

    def _product(self, weight_OI: Tensor, bias_O: Tensor | None = None) -> Linear:
        return packed(weight_OI.to(self.dtype).contiguous(), None if bias_O is None else bias_O.to(self.dtype))

    def _reading(self, states_xC: Tensor, tokens_x: Tensor) -> Tensor:
        return self.layer.reading(states_xC.to(self.dtype), self._embed(tokens_x))

    def keys_and_values(self, states_BTC: Tensor, tokens_BT: Tensor, turn_BT2E: Tensor) -> Tensor:
        """What is remembered of positions of the text, [B, T, 2, H, E]."""
        pair = self._of_text(self._reading(states_BTC, tokens_BT)).unflatten(-1, (2, *self.shape))
        return torch.stack([turned(pair[:, :, 0], turn_BT2E), pair[:, :, 1]], 2)

    def enter(self, states_BPC: Tensor, tokens_BP: Tensor, turn_RP2E: Tensor) -> Entry:
        """What the layer makes of states and the tokens after them."""
        whole = self._whole(self._reading(states_BPC, tokens_BP))
        query_key, value, inner = whole.tensor_split([2 * self._num_attended, 3 * self._num_attended], -1)
        query, key = turned(query_key.unflatten(-1, (2, *self.shape)), turn_RP2E[:, :, None]).unbind(2)
        return Entry(query, torch.stack([key, value.unflatten(-1, self.shape)], 2), inner)

    def leave(self, states_BPC: Tensor, inner_BPF: Tensor, attended_BPA: Tensor) -> Tensor:
        """The states one token later."""
        return states_BPC + self._out(silu(inner_BPF + self._attended_in(attended_BPA)))

    def logits(self, states_BPC: Tensor) -> Tensor:
        """Logits [B, P, V] over the draft vocabulary."""
        return self._output(states_BPC[..., : self.layer.hidden_size])


class TextBefore(NamedTuple):
    """The text before the root, as a draft attends to it."""

    keys_BHSE: Tensor
    values_BHSE: Tensor
    is_seen_B11S: Tensor | None  # None: rows are equally long
    end_R1: Tensor  # the position where the draft begins


class EagleMemory:
    """Keys and values of every committed position, in a cache of their own, which is allocated once."""

    def __init__(self, matrices: EagleMatrices, num_rows: int, num_slots: int, max_depth: int) -> None:
        self._matrices = matrices
        H, E = matrices.shape
        layer = PreTrainedConfig(num_hidden_layers=1, num_attention_heads=H, head_dim=E)
        self.cache = KVCache(layer, num_rows, num_slots, matrices.dtype, matrices.device)
        self._turns_S2E = rotations(torch.arange(num_slots + max_depth, device=matrices.device), E).to(matrices.dtype)

    def read(self, row: int, states_BTC: Tensor, tokens: Sequence[Sequence[int]], starts: Sequence[int]) -> None:
        """As in Drafter."""
        part, T = self.cache.part(row, len(tokens)), states_BTC.shape[1]
        part.lengths = list(starts)
        part.begin(T)
        slots_RT = torch.arange(starts[0], starts[0] + T, device=self._turns_S2E.device)[None]
        if part.slots_BN is not None:
            slots_RT = part.slots_BN
        padded_BT = torch.tensor([[*row, *[0] * (T - len(row))] for row in tokens], device=self._turns_S2E.device)
        pair_BT2HE = self._matrices.keys_and_values(states_BTC, padded_BT, self._turns_S2E[slots_RT])
        part.layers[0].update(*(of_text.transpose(1, 2) for of_text in pair_BT2HE.unbind(2)))
        for place, (start, new) in enumerate(zip(starts, tokens, strict=True), start=row):
            if new:  # a prompt that was read to its end before has none
                self.cache.lengths[place] = start + len(new)

    def read_on_device(self, states_BPC: Tensor, tokens_BP: Tensor, starts_B: Tensor) -> None:
        """As in Drafter."""
        B, P = tokens_BP.shape
        slots_BP = starts_B[:, None].long() + torch.arange(P, device=tokens_BP.device)
        pair_BP2HE = self._matrices.keys_and_values(states_BPC, tokens_BP, self._turns_S2E[slots_BP])
        rows_B1 = torch.arange(B, device=tokens_BP.device)[:, None]
        for of_slots_BHSE, new_BPHE in zip(self.cache.kv[0].unbind(0), pair_BP2HE.unbind(2), strict=True):
            of_slots_BHSE[rows_B1, :, slots_BP] = new_BPHE

    def before(self, draft_input: DraftInput) -> TextBefore:
        """What a draft sees of the text: all but the last committed position, where it begins."""
        if draft_input.lengths_B is not None:
            ends_B1 = (draft_input.lengths_B[:, None].long() - 1).clamp(min=0)
            return self._masked(ends_B1, draft_input.num_slots)
        ends = [max(length - 1, 0) for length in self.cache.lengths]  # nothing is committed of a prompt of one token
        if not self.cache.is_uniform:
            return self._masked(torch.tensor(ends, device=self._turns_S2E.device)[:, None], max(ends))
        keys_BHSE, values_BHSE = self.cache.kv[0, :, : len(ends), :, : ends[0]]
        return TextBefore(keys_BHSE, values_BHSE, None, torch.tensor(ends[:1], device=keys_BHSE.device)[:, None])

    def _masked(self, ends_B1: Tensor, num_slots: int) -> TextBefore:
        keys_BHSE, values_BHSE = self.cache.kv[0, :, : len(ends_B1), :, :num_slots]
        is_seen_BS = torch.arange(num_slots, device=ends_B1.device) < ends_B1
        return TextBefore(keys_BHSE, values_BHSE, is_seen_BS[:, None, None], ends_B1)

    def turns(self, positions_R1: Tensor) -> Tensor:
        """The rotations of these positions, [R, 1, 2, E]."""
        return self._turns_S2E[positions_R1]


class EagleDrafter(Drafter):
    """The layer on a fixed tree, or on the one that looks best in each step. `begin` gives it texts to follow."""

    reads_text = True
    is_on_device = True

    def __init__(
        self,
        base: Base,
        heads: Heads,
        tree: Tree | DynamicTree,
        calibration: Calibration | None = None,
        matrices: EagleMatrices | None = None,
    ) -> None:
        """matrices: of this layer, to be shared; None: its own."""
        self._growth = build_growth(tree, heads.num_candidates, base.device, True, calibration, top_k_of(base))
        self.num_nodes, self.max_depth = self._growth.num_nodes, self._growth.max_depth
        self.layers = heads.layers_read(base.num_layers)
        self._matrices = matrices or EagleMatrices(base, heads)
        self._memory: EagleMemory | None = None

    def begin(self, num_rows: int, num_slots: int) -> "EagleDrafter":
        begun = copy(self)
        begun._memory = EagleMemory(self._matrices, num_rows, num_slots, self.max_depth)
        return begun

    @property
    def memory(self) -> EagleMemory:
        """Of the texts of the live rows."""
        assert self._memory is not None, "it follows the texts of a batch: begin comes first"
        return self._memory

    def add(self, row: int) -> None:
        self.memory.cache.add(row, 0)  # the text is told as it is read

    def swap_remove(self, row: int) -> None:
        self.memory.cache.swap_remove(row)

    def read(self, row: int, states_BTC: Tensor, tokens: Sequence[Sequence[int]], starts: Sequence[int]) -> None:
        self.memory.read(row, states_BTC, tokens, starts)

    def read_on_device(self, states_BPC: Tensor, tokens_BP: Tensor, starts_B: Tensor) -> None:
        self.memory.read_on_device(states_BPC, tokens_BP, starts_B)

    def have_read(self, lengths: Sequence[int]) -> None:
        self.memory.cache.lengths = list(lengths)

    def propose(self, draft_input: DraftInput) -> Draft:
        return self._growth.grow(draft_input, self._levels(draft_input), self._matrices.draft_ids)

    def _levels(self, draft_input: DraftInput) -> Levels:
        matrices, memory = self._matrices, self.memory
        before = memory.before(draft_input)
        states_BPC = draft_input.hidden_BD[:, None].to(matrices.dtype)
        tokens_BP = draft_input.root_B[:, None]
        path_BPJ2HE: Tensor | None = None
        for level in range(self.max_depth):
            entry = matrices.enter(states_BPC, tokens_BP, memory.turns(before.end_R1 + level))
            link_BP12HE = entry.key_value_x2HE[:, :, None]
            path_BPJ2HE = link_BP12HE if path_BPJ2HE is None else torch.cat([path_BPJ2HE, link_BP12HE], 2)
            attended = attend(entry.query_xHE, *before[:3], path_BPJ2HE)
            states_BPC = matrices.leave(states_BPC, entry.inner_xF, attended)
            slots, tokens_BP = yield matrices.logits(states_BPC)
            states_BPC, path_BPJ2HE = of_slots(states_BPC, slots), of_slots(path_BPJ2HE, slots)
