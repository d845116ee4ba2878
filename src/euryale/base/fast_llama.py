"""How is a tree read by a Llama with as little work around the products as can be?

For a small base, or a quick card, most of a step is not arithmetic: it is the Python of a general model. This is the
forward pass of the Llama family alone (Llama, Mistral, Qwen2 with its biases, Qwen3 with its norms of queries and
keys), over the tensors of the loaded transformers model. It serves decoding; training, and every other family, go
through the model itself, which is its slow twin: the two are compared on a few tokens before the lean one is used.

A norm divides by one number a row; its weights are multiplied into the matrices behind it where those are copied.
Queries, keys and values are turned together, values by nothing, so that what a cache takes is one piece.

Letters: B batch, N nodes or tokens, M = B x N rows, D width, H query heads, G key/value heads, E head width, S slots.
"""

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache

from euryale.base.forward import Store
from euryale.base.tree_attention import tree_attention
from euryale.kernels.packed_linear import Product, has_room, product
from euryale.kernels.rms_norm import NORMALISE_EPS, RmsNorm, norm_of

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
_STATIC_ROPES = ("default", "linear", "llama3", "yarn")  # the others change their frequencies with the length
_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}  # of the std
log = logging.getLogger(__name__)


class LeanForward:
    """Token ids to final hidden states and logits, for decoding only."""

    @torch.no_grad()
    def __init__(self, model: PreTrainedModel) -> None:
        """`model` must be `fits`; weights that are changed later need a new LeanForward (see `is_current`)."""
        may_copy = has_room(model)
        inner: Any = model.base_model
        self._inner = inner
        self._weights = _state(model)
        self._model = model
        self._layers = [_LeanLayer(layer, may_copy) for layer in inner.layers]
        self._norm = RmsNorm(inner.norm.weight, inner.norm.variance_epsilon)
        self._unit = RmsNorm(torch.ones_like(inner.norm.weight), NORMALISE_EPS).whole  # normalise
        self._lm_head = product([model.get_output_embeddings()], may_copy)
        self._rotations = torch.empty(0)  # [positions, 2, 2, E]; see _rotations
        device = inner.embed_tokens.weight.device
        num_turned, num_values = self._layers[0].num_heads + self._layers[0].num_kv_heads, self._layers[0].num_kv_heads
        self._is_value = torch.tensor([0] * num_turned + [1] * num_values, device=device)

    def is_current(self) -> bool:
        """Whether the model's weights are still those that were copied."""
        return self._weights == _state(self._model)

    def reserve(self, num_positions: int) -> None:
        """Prepares for positions below num_positions."""
        if len(self._rotations) < num_positions:
            self._rotations = _rotations(self._inner, num_positions)

    def hidden(
        self, ids_BN: Tensor, positions_BN: Tensor, cache: Cache, mask: Tensor | None, layers: Sequence[int] = ()
    ) -> Tensor:
        """The final hidden states [B, N, D], and behind them those of `layers` (join_states).

        `cache` takes the keys and values; positions must be reserved.
        """
        rotations = self._rotations[positions_BN[0]][None] if len(positions_BN) == 1 else self._rotations[positions_BN]
        cos, sin = rotations.index_select(3, self._is_value).unbind(2)
        x_MD = self._inner.embed_tokens(ids_BN).flatten(0, 1)
        after: dict[int, Tensor] = {}
        for number, (layer, store) in enumerate(zip(self._layers, _stores(cache, len(self._layers)), strict=True), 1):
            x_MD = layer(x_MD, ids_BN.shape, cos, sin, store, mask)
            if number in layers:
                after[number] = x_MD
        states_MC = self._norm.whole(x_MD)
        if layers:
            middle_MJD = self._unit(torch.stack([after[number] for number in layers], 1))
            states_MC = torch.cat([states_MC, middle_MJD.flatten(1)], -1)
        return states_MC.unflatten(0, ids_BN.shape)

    def logits(self, hidden_BND: Tensor) -> Tensor:
        """Final hidden states [..., D] -> logits [..., V]."""
        return self._lm_head(hidden_BND.flatten(0, -2)).unflatten(0, hidden_BND.shape[:-1])


class _LeanLayer:
    """One decoder layer."""

    def __init__(self, layer: Any, may_copy: bool) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.attention = attention
        self.head_dim = attention.head_dim
        self.num_kv_heads = attention.k_proj.out_features // self.head_dim
        self.num_heads = attention.q_proj.out_features // self.head_dim
        self.norm_in, self.norm_mlp = norm_of(layer, "input_layernorm"), norm_of(layer, "post_attention_layernorm")
        projections = [attention.q_proj, attention.k_proj, attention.v_proj]
        self.qkv: Product = product(projections, may_copy, self.norm_in.scale)
        self.out: Product = product([attention.o_proj], may_copy)
        self.gate_up: Product = product([mlp.gate_proj, mlp.up_proj], may_copy, self.norm_mlp.scale)
        self.down: Product = product([mlp.down_proj], may_copy)
        self.inner_size = mlp.gate_proj.out_features
        has_norms = hasattr(attention, "q_norm")
        self.q_norm = norm_of(attention, "q_norm") if has_norms else None
        self.k_norm = norm_of(attention, "k_norm") if has_norms else None

    def __call__(
        self, x_MD: Tensor, shape: torch.Size, cos: Tensor, sin: Tensor, store: Store, mask: Tensor | None
    ) -> Tensor:
        H, G, E = self.num_heads, self.num_kv_heads, self.head_dim
        heads = self.qkv(self.norm_in(x_MD)).view(*shape, H + 2 * G, E)
        if self.q_norm is not None and self.k_norm is not None:
            queries, keys = self.q_norm.whole(heads[:, :, :H]), self.k_norm.whole(heads[:, :, H : H + G])
            heads = torch.cat([queries, keys, heads[:, :, H + G :]], 2)
        turned = torch.addcmul(heads * cos, heads.roll(E // 2, -1), sin)
        all_keys, all_values = store(turned[:, :, H:].view(*shape, 2, G, E))
        query = turned[:, :, :H].transpose(1, 2)
        seen, _ = tree_attention(self.attention, query, all_keys, all_values, mask, self.attention.scaling)
        x_MD = self.out.onto(x_MD, seen.view(len(x_MD), H * E))
        gate_up = self.gate_up(self.norm_mlp(x_MD))
        inner_MF = silu(gate_up[:, : self.inner_size]) * gate_up[:, self.inner_size :]
        return self.down.onto(x_MD, inner_MF)


def _stores(cache: Any, num_layers: int) -> list[Store]:
    """Where each layer's keys and values go: into an arena's own slots, or through a cache of transformers."""
    if hasattr(cache, "stores"):
        stores: list[Store] = cache.stores()
        return stores
    return [partial(_update, cache, layer) for layer in range(num_layers)]


def _update(cache: Cache, layer: int, new_BN2GE: Tensor) -> tuple[Tensor, Tensor]:
    keys_BGNE, values_BGNE = new_BN2GE.permute(2, 0, 3, 1, 4)
    return cache.update(keys_BGNE, values_BGNE, layer)


def lean_forward(model: PreTrainedModel) -> LeanForward | None:
    """The lean forward of this model, or None where it has none or does not say what the model says."""
    if not fits(model):
        return None
    lean = LeanForward(model)
    if not _agrees(model, lean):
        log.warning(
            "the lean forward does not agree with %s on this machine; decoding goes through transformers, which is "
            "slower and gives the same text",
            type(model).__name__,
        )
        return None
    return lean


def fits(model: PreTrainedModel) -> bool:
    """Whether the lean forward knows this family, rope and activation."""
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    return (
        config.model_type in FAMILIES
        and rope.get("rope_type", "default") in _STATIC_ROPES
        and getattr(config, "hidden_act", "silu") == "silu"
        and hasattr(model.base_model, "layers")
    )


def _rotations(inner: Any, num_positions: int) -> Tensor:
    """[at least num_positions, 2, 2, E]: cosines, and sines with the sign of the half they go to; of turned heads, and
    of those that stay as they are.

    Grows by doubling, so that longer texts seldom ask again.
    """
    num_positions = 1 << max(8, (num_positions - 1).bit_length())
    weight = inner.embed_tokens.weight
    positions = torch.arange(num_positions, device=weight.device)[None]
    cos, sin = inner.rotary_emb(torch.empty(0, dtype=weight.dtype, device=weight.device), positions)
    half = cos.shape[-1] // 2
    signed = torch.cat([-sin[..., :half], sin[..., half:]], -1)
    turned = torch.stack([cos[0], signed[0]], 1)
    stays = torch.stack([torch.ones_like(cos[0]), torch.zeros_like(cos[0])], 1)
    return torch.stack([turned, stays], 2)


def _state(model: nn.Module) -> list[tuple[int, int]]:
    """Where every parameter lies and how often it was written to."""
    return [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in model.parameters()]


@torch.no_grad()
def _agrees(model: PreTrainedModel, lean: LeanForward) -> bool:
    """Both read the same few tokens; the logits may differ by rounding alone."""
    weight = model.get_output_embeddings().weight
    ids_BN = (torch.arange(12, device=weight.device) * 7919 % weight.shape[0])[None]
    positions_BN = torch.arange(12, device=weight.device)[None]
    expected = model(input_ids=ids_BN, use_cache=False).logits.double()
    lean.reserve(12)
    found = lean.logits(lean.hidden(ids_BN, positions_BN, DynamicCache(config=model.config), None)).double()
    error = (found - expected).square().mean().sqrt() / expected.std().clamp(min=1e-6)
    return bool(error <= _TOLERANCE.get(weight.dtype, 0.1))
