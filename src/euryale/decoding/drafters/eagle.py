"""What does the one layer of an EAGLE checkpoint propose?

Of the text it keeps keys and values, nothing else (eagle.py): the step tells it the states of what was committed, and
a prompt's as it is read. The last committed position is the first link of every path: it is entered again with the
root, and each level of the tree goes on from the states that its parents' level answered. A path carries its own
keys and values along, so what is not accepted leaves nothing behind and no mask tells siblings apart.

Letters: B batch, R rows that differ (1 or B), T tokens, P parents of a level, J links of a path, H attention heads, E
head width, D width, C numbers of all states, F inner width, S slots, V vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import silu
from transformers import PreTrainedConfig

from euryale.base.base import Base
from euryale.decoding.drafters.head_matrices import TokenTable, draft_dtype
from euryale.decoding.drafters.interface import Draft, Known, TextReader, log_q, with_noise
from euryale.decoding.drafters.tree_growth import Growth, build_growth
from euryale.decoding.kv_cache import Arena
from euryale.decoding.tree.calibration import Calibration
from euryale.decoding.tree.tree import Budget, Tree
from euryale.heads.eagle import Entry, attend, rotations, turned
from euryale.heads.heads import Heads
from euryale.kernels.packed_linear import Product, packed


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

    def _product(self, weight_OI: Tensor, bias_O: Tensor | None = None) -> Product:
        return packed(weight_OI.to(self.dtype).contiguous(), None if bias_O is None else bias_O.to(self.dtype))

    def _reading(self, states_xC: Tensor, tokens_x: Tensor) -> Tensor:
        return self.layer.reading(states_xC.to(self.dtype), self._embed(tokens_x))

    def keys_and_values(self, states_BTC: Tensor, tokens_BT: Tensor, turn_BT2E: Tensor) -> Tensor:
        """What is remembered of positions of the text, [B, T, 2, H, E]."""
        pair = self._of_text(self._reading(states_BTC, tokens_BT)).unflatten(-1, (2, *self.shape))
        return torch.stack([turned(pair[:, :, 0], turn_BT2E), pair[:, :, 1]], 2)

    def enter(self, states_BPC: Tensor, tokens_BP: Tensor, turn_RP2E: Tensor) -> Entry:
        """What the layer makes of states and the tokens behind them."""
        whole = self._whole(self._reading(states_BPC, tokens_BP))
        query_key, value, inner = whole.tensor_split([2 * self._num_attended, 3 * self._num_attended], -1)
        query, key = turned(query_key.unflatten(-1, (2, *self.shape)), turn_RP2E[:, :, None]).unbind(2)
        return Entry(query, torch.stack([key, value.unflatten(-1, self.shape)], 2), inner)

    def leave(self, states_BPC: Tensor, inner_BPF: Tensor, attended_BPA: Tensor) -> Tensor:
        """The states one token later."""
        return states_BPC + self._out(silu(inner_BPF + self._attended_in(attended_BPA)))

    def scores(self, states_BPC: Tensor) -> Tensor:
        """Logits [B, P, V] over the draft vocabulary."""
        return self._output(states_BPC[..., : self.layer.hidden_size])


class EagleMemory:
    """Keys and values of every committed position, in an arena of their own, which is allocated once."""

    def __init__(self, matrices: EagleMatrices, num_rows: int, num_slots: int, max_depth: int) -> None:
        self._matrices = matrices
        H, E = matrices.shape
        layer = PreTrainedConfig(num_hidden_layers=1, num_attention_heads=H, head_dim=E)
        self.arena = Arena(layer, num_rows, num_slots, matrices.dtype, matrices.device)
        self.arena.lengths.clear()
        self._turns_S2E = rotations(torch.arange(num_slots + max_depth, device=matrices.device), E).to(matrices.dtype)

    def read(self, row: int, states_BTC: Tensor, tokens: Sequence[Sequence[int]], starts: Sequence[int]) -> None:
        part, T = self.arena.part(row, len(tokens)), states_BTC.shape[1]
        part.lengths = list(starts)
        part.begin(T)
        slots_RT = torch.arange(starts[0], starts[0] + T, device=self._turns_S2E.device)[None]
        if part.slots_BN is not None:
            slots_RT = part.slots_BN
        padded_BT = torch.tensor([[*row, *[0] * (T - len(row))] for row in tokens], device=self._turns_S2E.device)
        pair_BT2HE = self._matrices.keys_and_values(states_BTC, padded_BT, self._turns_S2E[slots_RT])
        part.layers[0].update(*(of_text.transpose(1, 2) for of_text in pair_BT2HE.unbind(2)))
        for place, (start, new) in enumerate(zip(starts, tokens, strict=True), start=row):
            if new:  # a prompt that was read before only keeps others company
                self.arena.lengths[place] = start + len(new)

    def look_back(self) -> "Behind":
        """What a draft sees of the text: all but the last committed position, where it begins."""
        arena = self.arena
        ends = [max(length - 1, 0) for length in arena.lengths]  # nothing is committed of a prompt of one token
        keys_BHSE, values_BHSE = arena.kv[0, :, : len(ends), :, : max(ends)]
        if arena.is_uniform:
            return Behind(keys_BHSE, values_BHSE, None, torch.tensor(ends[:1], device=keys_BHSE.device)[:, None])
        ends_B1 = torch.tensor(ends, device=keys_BHSE.device)[:, None]
        is_seen_BS = torch.arange(max(ends), device=keys_BHSE.device) < ends_B1
        return Behind(keys_BHSE, values_BHSE, is_seen_BS[:, None, None], ends_B1)

    def turns(self, positions_R1: Tensor) -> Tensor:
        """The rotations of these positions, [R, 1, 2, E]."""
        return self._turns_S2E[positions_R1]


class Behind(NamedTuple):
    """The text behind the root, as a draft looks at it."""

    keys_BHSE: Tensor
    values_BHSE: Tensor
    is_seen_B11S: Tensor | None  # None: rows are equally long
    end_R1: Tensor  # the position where the draft begins


class EagleDrafter:
    """The layer on a fixed tree, or on the one that looks best in each step."""

    reader: TextReader | None = None

    def __init__(self, base: Base, heads: Heads, tree: Tree | Budget, calibration: Calibration | None = None) -> None:
        self._growth = build_growth(tree, heads.num_candidates, base.device, True, calibration)
        self.num_nodes, self.max_depth = self._growth.num_nodes, self._growth.max_depth
        self.layers = heads.layers_read(base.num_layers)
        self._matrices = EagleMatrices(base, heads)

    def begin(self, num_rows: int, num_slots: int) -> "EagleBatch":
        return EagleBatch(self._matrices, self._growth, self.layers, num_rows, num_slots)

    def admit(self, row: int) -> None:
        raise AssertionError("it follows the text of a batch: begin comes first")

    retire = admit

    def propose(self, known: Known) -> Draft:
        raise AssertionError("it follows the text of a batch: begin comes first")


class EagleBatch:
    """The layer beside the texts of one batch."""

    def __init__(
        self, matrices: EagleMatrices, growth: Growth, layers: tuple[int, ...], num_rows: int, num_slots: int
    ) -> None:
        self.num_nodes, self.max_depth, self.layers = growth.num_nodes, growth.max_depth, layers
        self._matrices, self._growth = matrices, growth
        self._memory = EagleMemory(matrices, num_rows, num_slots, growth.max_depth)
        self.reader: TextReader | None = self._memory

    def begin(self, num_rows: int, num_slots: int) -> "EagleBatch":
        raise AssertionError("this is the drafter of a batch already")

    def admit(self, row: int) -> None:
        """The text is told to the memory as it is read."""
        self._memory.arena.admit(row, [0])

    def retire(self, row: int) -> None:
        self._memory.arena.retire(row)

    def propose(self, known: Known) -> Draft:
        matrices, memory = self._matrices, self._memory
        behind = memory.look_back()
        states_BPC = known.hidden_BD[:, None].to(matrices.dtype)
        path_BPJ2HE: Tensor | None = None
        drawn_from: list[Tensor] = []

        def ask(level: int, slots: Tensor | None, tokens_BP: Tensor | None) -> Tensor:
            nonlocal states_BPC, path_BPJ2HE
            if slots is None or tokens_BP is None:
                tokens_BP = known.root_B[:, None]
            elif path_BPJ2HE is not None:
                states_BPC, path_BPJ2HE = _of(states_BPC, slots), _of(path_BPJ2HE, slots)
            entry = matrices.enter(states_BPC, tokens_BP, memory.turns(behind.end_R1 + level))
            link_BP12HE = entry.key_value_x2HE[:, :, None]
            path_BPJ2HE = link_BP12HE if path_BPJ2HE is None else torch.cat([path_BPJ2HE, link_BP12HE], 2)
            attended = attend(entry.query_xHE, *behind[:3], path_BPJ2HE)
            states_BPC = matrices.leave(states_BPC, entry.inner_xF, attended)
            scores_BPV = with_noise(matrices.scores(states_BPC), known, level, matrices.draft_ids)
            if known.draws:
                drawn_from.append(log_q(scores_BPV, known, level, matrices.draft_ids))
            return scores_BPV

        draft = self._growth.grow(known.root_B, ask, matrices.draft_ids)
        return draft._replace(log_q_BNV=self._growth.spread(drawn_from))


def _of(parents_BPX: Tensor, slots: Tensor) -> Tensor:
    """What each node inherits of the parent that it continues; slots [P], or [B, P] where rows differ."""
    if slots.ndim == 1:
        return parents_BPX[:, slots]
    return parents_BPX[torch.arange(len(slots), device=slots.device)[:, None], slots]
