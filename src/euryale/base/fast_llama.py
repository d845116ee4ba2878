"""Fast forward pass for the Llama family, in decoding.

For a small base, or a quick card, most of a step is not arithmetic: it is the Python of a general model. This is the
forward pass of the Llama family alone (Llama, Mistral, Qwen2 with its biases, Qwen3 with its norms of queries and
keys), over the tensors of the loaded transformers model. It serves decoding; training, and every other family, go
through the model itself, which is its slow twin: the two are compared on a few tokens before the fast one is used.

A norm divides by one number a row; its weights are multiplied into the matrices after it where those are copied.
Queries, keys and values are turned together, values by nothing, so that what a cache takes is one piece.

Letters: B batch, N nodes or tokens, M = B x N rows, D width, H query heads, G key/value heads, E head width, S slots.
"""

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, silu
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from euryale.base.exact_attention import KeyOrder, attention_rows, exact_attention, key_order
from euryale.base.forward import Store
from euryale.base.forward_check import agrees
from euryale.base.rope import apply_rope, rope_table
from euryale.base.tree_attention import tree_attention
from euryale.kernels.packed_linear import Linear, has_room, joined_linear
from euryale.kernels.rms_norm import NORMALISE_EPS, RmsNorm, norm_of
from euryale.kernels.row_blocks import RowCounts, common_counts

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
_STATIC_ROPES = ("default", "linear", "llama3", "yarn")  # the others change their frequencies with the length
_EXACT = (torch.float32, torch.bfloat16)  # the dtypes of which is_exact can be true
log = logging.getLogger(__name__)


class FastLlama:
    """Token ids to final hidden states and logits, for decoding only."""

    @torch.no_grad()
    def __init__(self, model: PreTrainedModel) -> None:
        """`model` must be `fits`; weights that are changed later need a new FastLlama (see `is_current`)."""
        may_copy = has_room(model)
        inner: Any = model.base_model
        self._inner = inner
        self._weights = _state(model)
        self._model = model
        self._layers = [_Layer(layer, may_copy) for layer in inner.layers]
        self._norm = RmsNorm(inner.norm.weight, inner.norm.variance_epsilon)
        self._unit = RmsNorm(torch.ones_like(inner.norm.weight), NORMALISE_EPS).whole  # normalise
        self._lm_head = joined_linear([model.get_output_embeddings()], may_copy)
        self._rope_table = torch.empty(0)  # [positions, 2, 2, E]; see rope_table
        self._threads, self._rows = 0, RowCounts([])
        self._unit_rows: int | None = None
        device = inner.embed_tokens.weight.device
        num_turned, num_values = self._layers[0].num_heads + self._layers[0].num_kv_heads, self._layers[0].num_kv_heads
        self._is_value = torch.tensor([0] * num_turned + [1] * num_values, device=device)

    def is_current(self) -> bool:
        """Whether the model's weights are still those that were copied."""
        return self._weights == _state(self._model)

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
        linears = [linear for layer in self._layers for linear in layer.linears] + [self._lm_head]
        first, weight = self._layers[0], self._inner.embed_tokens.weight
        self._rows, self._unit_rows = RowCounts([]), None
        if weight.device.type != "cpu" or weight.dtype not in _EXACT:
            return
        self._unit_rows = attention_rows(first.num_heads // first.num_kv_heads, first.head_dim, weight.dtype, threads)
        if self._unit_rows is not None and all(linear.shape is not None for linear in linears):
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
        order, lengths = None, _lengths(cache, len(ids_BN))
        M = ids_BN.numel()
        num_rows = self._rows.padded(M)
        if self._unit_rows is not None and self._rows.is_exact:
            nodes_RNN = None if mask is None else _nodes_seen(mask, lengths, ids_BN.shape[1])
            order = key_order(nodes_RNN, lengths, ids_BN.shape, self._unit_rows, self._inner.embed_tokens.weight)
        rope = self._rope_table[positions_BN[0]][None] if len(positions_BN) == 1 else self._rope_table[positions_BN]
        cos, sin = rope.index_select(3, self._is_value).unbind(2)
        ids_M = ids_BN.flatten()
        x_MD = self._inner.embed_tokens(ids_M if num_rows == M else pad(ids_M, (0, num_rows - M)))
        after: dict[int, Tensor] = {}
        for number, (layer, store) in enumerate(zip(self._layers, _stores(cache, len(self._layers)), strict=True), 1):
            x_MD = layer(x_MD, ids_BN.shape, cos, sin, store, mask, order, self._rows)
            if number in layers:
                after[number] = x_MD
        states_MC = self._norm.whole(x_MD)
        if layers:
            middle_MJD = self._unit(torch.stack([after[number] for number in layers], 1))
            states_MC = torch.cat([states_MC, middle_MJD.flatten(1)], -1)
        return states_MC[:M].unflatten(0, ids_BN.shape)

    def logits(self, hidden_BND: Tensor) -> Tensor:
        """Final hidden states [..., D] -> logits [..., V]."""
        hidden_MD = hidden_BND.flatten(0, -2)
        M = len(hidden_MD)
        num_rows = self._rows.padded(M)
        if num_rows != M:
            hidden_MD = pad(hidden_MD, (0, 0, 0, num_rows - M))
        return self._rows.in_blocks(self._lm_head, hidden_MD)[:M].unflatten(0, hidden_BND.shape[:-1])


class _Layer:
    """One decoder layer."""

    def __init__(self, layer: Any, may_copy: bool) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.attention = attention
        self.head_dim = attention.head_dim
        self.num_kv_heads = attention.k_proj.out_features // self.head_dim
        self.num_heads = attention.q_proj.out_features // self.head_dim
        self.norm_in, self.norm_mlp = norm_of(layer, "input_layernorm"), norm_of(layer, "post_attention_layernorm")
        projections = [attention.q_proj, attention.k_proj, attention.v_proj]
        self.qkv: Linear = joined_linear(projections, may_copy, self.norm_in.scale)
        self.out: Linear = joined_linear([attention.o_proj], may_copy)
        self.gate_up: Linear = joined_linear([mlp.gate_proj, mlp.up_proj], may_copy, self.norm_mlp.scale)
        self.down: Linear = joined_linear([mlp.down_proj], may_copy)
        self.linears = (self.qkv, self.out, self.gate_up, self.down)
        self.inner_size = mlp.gate_proj.out_features
        has_norms = hasattr(attention, "q_norm")
        self.q_norm = norm_of(attention, "q_norm") if has_norms else None
        self.k_norm = norm_of(attention, "k_norm") if has_norms else None

    def __call__(
        self,
        x_MD: Tensor,
        shape: torch.Size,
        cos: Tensor,
        sin: Tensor,
        store: Store,
        mask: Tensor | None,
        order: KeyOrder | None,
        rows: RowCounts,
    ) -> Tensor:
        """x [M, D], of which the first B x N rows are tokens and the others padding."""
        H, G, E = self.num_heads, self.num_kv_heads, self.head_dim
        num_tokens = shape.numel()
        heads = rows.in_blocks(self.qkv, self.norm_in(x_MD))[:num_tokens].view(*shape, H + 2 * G, E)
        if self.q_norm is not None and self.k_norm is not None:
            queries, keys = self.q_norm.whole(heads[:, :, :H]), self.k_norm.whole(heads[:, :, H : H + G])
            heads = torch.cat([queries, keys, heads[:, :, H + G :]], 2)
        turned = apply_rope(heads, cos, sin)
        all_keys, all_values = store(turned[:, :, H:].view(*shape, 2, G, E))
        query = turned[:, :, :H]
        if order is not None:
            seen = exact_attention(query, all_keys, all_values, order, self.attention.scaling)
        else:
            seen, _ = tree_attention(
                self.attention, query.transpose(1, 2), all_keys, all_values, mask, self.attention.scaling
            )
        seen = seen.view(num_tokens, H * E)
        if num_tokens != len(x_MD):
            seen = pad(seen, (0, 0, 0, len(x_MD) - num_tokens))
        x_MD = rows.in_blocks(self.out.onto, x_MD, seen)
        gate_up = rows.in_blocks(self.gate_up, self.norm_mlp(x_MD))
        inner_MF = silu(gate_up[:, : self.inner_size]) * gate_up[:, self.inner_size :]
        return rows.in_blocks(self.down.onto, x_MD, inner_MF)


def _lengths(cache: Any, num_rows: int) -> list[int]:
    """Committed tokens of each row before the pass."""
    return list(cache.lengths) if hasattr(cache, "stores") else [cache.get_seq_length()] * num_rows


def _nodes_seen(mask: Tensor, lengths: Sequence[int], num_nodes: int) -> Tensor:
    """True where a node sees a node [1 or B, N, N]: the columns of an additive mask after each row's own length."""
    if len(mask) == 1:
        return mask[:, 0, :, lengths[0] : lengths[0] + num_nodes] == 0
    columns_BN = torch.tensor(lengths)[:, None] + torch.arange(num_nodes)
    return mask[:, 0].gather(2, columns_BN[:, None].expand(-1, num_nodes, -1)) == 0


def _stores(cache: Any, num_layers: int) -> list[Store]:
    """Where each layer's keys and values go: into an arena's own slots, or through a cache of transformers."""
    if hasattr(cache, "stores"):
        stores: list[Store] = cache.stores()
        return stores
    return [partial(_update, cache, layer) for layer in range(num_layers)]


def _update(cache: Cache, layer: int, new_BN2GE: Tensor) -> tuple[Tensor, Tensor]:
    keys_BGNE, values_BGNE = new_BN2GE.permute(2, 0, 3, 1, 4)
    return cache.update(keys_BGNE, values_BGNE, layer)


def fast_forward(model: PreTrainedModel, sample: list[int]) -> FastLlama | None:
    """The fast forward of this model, or None where it has none or does not say what the model says."""
    if not fits(model):
        return None
    fast = FastLlama(model)
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
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    return (
        config.model_type in FAMILIES
        and rope.get("rope_type", "default") in _STATIC_ROPES
        and getattr(config, "hidden_act", "silu") == "silu"
        and hasattr(model.base_model, "layers")
    )


def _state(model: nn.Module) -> list[tuple[int, int]]:
    """Where every parameter lies and how often it was written to."""
    return [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in model.parameters()]
