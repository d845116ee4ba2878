"""Fast forward pass for the Llama family, in decoding.

For a small base, or a quick card, most of a step is not arithmetic: it is the Python of a general model. This is the
forward pass of the Llama family alone (Llama, Mistral, Qwen2 with its biases, Qwen3 with its norms of queries and
keys), over the tensors of the loaded transformers model. It serves decoding; training, and every other family, go
through the model itself, which is its slow twin: the two are compared on a few tokens before the fast one is used.

On a CPU attention is exact_attention, and products take row counts that agree (row_blocks): where both are proven, a
row's numbers do not depend on the rest of the pass, so a tree gives the bits of plain decoding.

Letters: B batch, N nodes or tokens, M = B x N rows, D width, H query heads, G key/value heads, E head width, S slots.
"""

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache

from euryale.base.attention_plan import Heads
from euryale.base.attention_planner import Planner
from euryale.base.attention_proof import UNPROVEN, proven_blocks
from euryale.base.config import FAMILIES
from euryale.base.exact_attention import exact_attention
from euryale.base.forward import Store
from euryale.base.forward_check import agrees
from euryale.base.llama_layer import Attend, LlamaLayer
from euryale.base.rope import rope_table
from euryale.base.tree_attention import tree_attention
from euryale.kernels.packed_linear import has_room, joined_linear
from euryale.kernels.rms_norm import NORMALISE_EPS, RmsNorm
from euryale.kernels.row_blocks import RowCounts, common_counts

_STATIC_ROPES = ("default", "linear", "llama3", "yarn")  # the others change their frequencies with the length
_EXACT = (torch.float32, torch.bfloat16)  # the dtypes of which is_exact can be true
log = logging.getLogger(__name__)


class FastLlama:
    """Token ids to final hidden states and logits, for decoding only."""

    @torch.no_grad()
    def __init__(self, model: PreTrainedModel, expands_4bit: bool = False) -> None:
        """`model` must be `fits`; weights that are changed later need a new FastLlama (see `is_current`).

        expands_4bit: 4-bit matrices are expanded to the model's dtype once, which takes 4 times their memory in 16
        bits; else their modules are asked.
        """
        may_copy = has_room(model)
        inner: Any = model.base_model
        self._inner = inner
        self._weights = state_of(model)
        self._model = model
        expand_to = inner.embed_tokens.weight.dtype if expands_4bit else None
        self._layers = [LlamaLayer(layer, may_copy, expand_to) for layer in inner.layers]
        self._norm = RmsNorm(inner.norm.weight, inner.norm.variance_epsilon)
        self._unit = RmsNorm(torch.ones_like(inner.norm.weight), NORMALISE_EPS).whole  # normalise
        self._lm_head = joined_linear([model.get_output_embeddings()], may_copy)
        self._rope_table = torch.empty(0)  # [positions, 2, 2, E]; see rope_table
        self._threads, self._rows = 0, RowCounts([])
        self._planner: Planner | None = None  # None: attention as transformers has it
        device, self._dtype = inner.embed_tokens.weight.device, inner.embed_tokens.weight.dtype
        self._is_exact_attention = device.type == "cpu" and self._dtype in _EXACT
        num_turned, num_values = self._layers[0].num_heads + self._layers[0].num_kv_heads, self._layers[0].num_kv_heads
        self._is_value = torch.tensor([0] * num_turned + [1] * num_values, device=device)

    def is_current(self) -> bool:
        """Whether the model's weights are still those that were copied."""
        return self._weights == state_of(self._model)

    def reserve(self, num_positions: int) -> None:
        """Prepares for positions below num_positions."""
        if len(self._rope_table) < num_positions:
            self._rope_table = rope_table(self._inner, num_positions)
        self._prove()

    def _prove(self) -> None:
        """Finds the row counts at which rows do not depend on each other, for torch's number of threads."""
        threads = torch.get_num_threads()
        if threads == self._threads:
            return
        self._threads = threads
        self._rows = RowCounts([])
        if not self._is_exact_attention:
            return
        first = self._layers[0]
        heads = Heads(
            first.num_kv_heads, first.num_heads // first.num_kv_heads, first.head_dim, first.attention.scaling
        )
        blocks = proven_blocks(first.head_dim, threads)
        self._planner = Planner(heads, blocks or UNPROVEN, self._dtype)
        linears = [linear for layer in self._layers for linear in layer.linears] + [self._lm_head]
        if blocks is not None and all(linear.shape is not None for linear in linears):
            self._rows = common_counts([linear.shape for linear in linears if linear.shape is not None])

    @property
    def is_exact(self) -> bool:
        """Whether a row's numbers are proven not to depend on how many rows, nodes or neighbours are in a pass."""
        self._prove()
        return self._rows.is_exact

    def hidden(
        self, ids_BN: Tensor, positions_BN: Tensor, cache: Cache, mask: Tensor | None, layers: Sequence[int] = ()
    ) -> Tensor:
        """The final hidden states [B, N, D], and after them those of `layers` (join_states).

        `cache` takes the keys and values; positions must be reserved.
        """
        M, lengths = ids_BN.numel(), _lengths(cache, len(ids_BN))
        num_rows = self._rows.padded(M)
        attend, width = self._attend(mask, lengths, ids_BN.shape[1], num_rows)
        rope = self._rope_table[positions_BN[0]][None] if len(positions_BN) == 1 else self._rope_table[positions_BN]
        cos, sin = rope.index_select(3, self._is_value).unbind(2)
        ids_M = ids_BN.flatten()
        x_MD = self._inner.embed_tokens(ids_M if num_rows == M else pad(ids_M, (0, num_rows - M)))
        after: dict[int, Tensor] = {}
        stores = _stores(cache, len(self._layers), width)
        for number, (layer, store) in enumerate(zip(self._layers, stores, strict=True), 1):
            x_MD = layer(x_MD, ids_BN.shape, cos, sin, store, attend, self._rows)
            if number in layers:
                after[number] = x_MD
        states_MC = self._norm.whole(x_MD)
        if layers:
            middle_MJD = self._unit(torch.stack([after[number] for number in layers], 1))
            states_MC = torch.cat([states_MC, middle_MJD.flatten(1)], -1)
        return states_MC[:M].unflatten(0, ids_BN.shape)

    def _attend(
        self, mask: Tensor | None, lengths: Sequence[int], num_nodes: int, num_rows: int
    ) -> tuple[Attend, int | None]:
        """The attention of one pass, for all layers, and the slots that it reads; None: those of the mask."""
        if self._planner is None:
            attention: Any = self._layers[0].attention
            return partial(_plain_attention, attention, attention.scaling, mask), None
        nodes_RNN = None if mask is None else _nodes_seen(mask, lengths, num_nodes)
        if mask is not None and nodes_RNN is None:
            plan = self._planner.masked(mask, len(lengths), num_rows)
        else:
            plan = self._planner.plan(nodes_RNN, lengths, num_nodes, num_rows)
        return partial(exact_attention, plan), plan.width

    def logits(self, hidden_BND: Tensor) -> Tensor:
        """Final hidden states [..., D] -> logits [..., V]."""
        hidden_MD = hidden_BND.flatten(0, -2)
        M = len(hidden_MD)
        num_rows = self._rows.padded(M)
        if num_rows != M:
            hidden_MD = pad(hidden_MD, (0, 0, 0, num_rows - M))
        return self._rows.in_blocks(self._lm_head, hidden_MD)[:M].unflatten(0, hidden_BND.shape[:-1])


def _lengths(cache: Any, num_rows: int) -> list[int]:
    """Committed tokens of each row before the pass."""
    return list(cache.lengths) if hasattr(cache, "stores") else [cache.get_seq_length()] * num_rows


def _nodes_seen(mask: Tensor, lengths: Sequence[int], num_nodes: int) -> Tensor | None:
    """True where a node sees a node [1 or B, N, N]: the columns of an additive mask after each row's own length.

    None: a node is kept from a committed slot, as the later levels of a draft are.
    """
    seen_RNS = mask[:, 0] == 0
    rows = list(zip(seen_RNS, lengths, strict=False))  # one mask is of rows of one length
    if not all(seen_NS[:, :length].numpy().all() for seen_NS, length in rows):
        return None
    if len(rows) == 1:
        return seen_RNS[..., lengths[0] : lengths[0] + num_nodes]
    return torch.stack([seen_NS[:, length : length + num_nodes] for seen_NS, length in rows])


def _plain_attention(
    module: nn.Module, scaling: float, mask: Tensor | None, query: Tensor, keys: Tensor, values: Tensor
) -> Tensor:
    """[B x N, H E]; see LlamaLayer. All layers have the same scaling."""
    seen, _ = tree_attention(module, query.transpose(1, 2), keys, values, mask, scaling)
    return seen.flatten(2).flatten(0, 1)


def _stores(cache: Any, num_layers: int, width: int | None) -> list[Store]:
    """Where each layer's keys and values go: into a cache's own slots, or through a cache of transformers."""
    if hasattr(cache, "stores"):
        stores: list[Store] = cache.stores(width)
        return stores
    return [partial(_update, cache, layer, width) for layer in range(num_layers)]


def _update(cache: Cache, layer: int, width: int | None, new_BN2GE: Tensor) -> tuple[Tensor, Tensor]:
    keys_BGNE, values_BGNE = new_BN2GE.permute(2, 0, 3, 1, 4)
    keys, values = cache.update(keys_BGNE, values_BGNE, layer)
    if width is None:
        return keys, values
    missing = (0, 0, 0, width - keys.shape[2])
    return pad(keys, missing), pad(values, missing)


def fast_forward(model: PreTrainedModel, sample: list[int], expands_4bit: bool = False) -> FastLlama | None:
    """The fast forward of this model, or None where it has none or does not say what the model says."""
    if not fits(model):
        return None
    fast = FastLlama(model, expands_4bit)
    if not agrees(model, fast, sample):
        log.warning(
            "the fast forward does not agree with %s on this machine; decoding goes through transformers, which is "
            "slower and gives the same text",
            type(model).__name__,
        )
        return None
    return fast


def fits(model: PreTrainedModel) -> bool:
    """Whether the fast forward knows this family, rope and activation."""
    return is_known(model.config) and hasattr(model.base_model, "layers")


def is_known(config: PreTrainedConfig) -> bool:
    """The part of `fits` that the config alone decides."""
    config = config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    return (
        config.model_type in FAMILIES
        and rope.get("rope_type", "default") in _STATIC_ROPES
        and getattr(config, "hidden_act", "silu") == "silu"
    )


def state_of(model: nn.Module) -> list[tuple[int, int]]:
    """Where every parameter lies and how often it was written to."""
    return [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in model.parameters()]
