"""How is a tree read by a Llama with as little work around the products as can be?

For a small base, or a quick card, most of a step is not arithmetic: it is the Python of a general model. This is the
forward pass of the Llama family alone (Llama, Mistral, Qwen2 with its biases, Qwen3 with its norms of queries and
keys), over the tensors of the loaded transformers model. It serves decoding; training, and every other family, go
through the model itself, which is its slow twin: the two are compared on a few tokens before the lean one is used.

Letters: B batch, N nodes or tokens, M = B x N rows, D width, H query heads, G key/value heads, E head width, S slots.
"""

import logging
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, silu
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache

from euryale.model.attention import tree_attention
from euryale.model.heads import join_states
from euryale.model.products import Product, has_room, product
from euryale.model.states import outputs_of_layers

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
_STATIC_ROPES = ("default", "linear", "llama3", "yarn")  # the others change their frequencies with the length
_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}  # of the std
log = logging.getLogger(__name__)


class Forward(Protocol):
    """How decoding reads tokens: ids [B, N] to hidden states [B, N, D] to logits [B, N, V]."""

    def reserve(self, num_positions: int) -> None: ...
    def hidden(
        self, ids_BN: Tensor, positions_BN: Tensor, cache: Cache, mask: Tensor | None, layers: Sequence[int] = ()
    ) -> Tensor: ...
    def logits(self, hidden_BND: Tensor) -> Tensor: ...


class PlainForward:
    """The transformers model itself: every family, and the slow twin of the lean forward."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model

    def reserve(self, num_positions: int) -> None:
        """Nothing to prepare."""

    def hidden(
        self, ids_BN: Tensor, positions_BN: Tensor, cache: Cache, mask: Tensor | None, layers: Sequence[int] = ()
    ) -> Tensor:
        """The final hidden states [B, N, D], and behind them those of `layers` (join_states).

        `cache` takes the keys and values.
        """
        with outputs_of_layers(self._model, layers) as between:
            out = self._model.base_model(
                input_ids=ids_BN, position_ids=positions_BN, past_key_values=cache, attention_mask=mask, use_cache=True
            )
        return join_states(out.last_hidden_state, [between[layer] for layer in layers])

    def logits(self, hidden_BND: Tensor) -> Tensor:
        """Final hidden states [..., D] -> logits [..., V]."""
        return self._model.get_output_embeddings()(hidden_BND)


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
        self._layers = [_LeanLayer(layer, index, may_copy) for index, layer in enumerate(inner.layers)]
        self._lm_head = product([model.get_output_embeddings()], may_copy)
        self._rotations = torch.empty(0)  # [positions, 2, E]: cosines, and sines with the sign of the half they go to

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
        rotations = self._rotations[positions_BN[0]] if len(positions_BN) == 1 else self._rotations[positions_BN]
        cos, sin = rotations.view(*positions_BN.shape, 1, 2, -1).unbind(-2)
        x_MD = self._inner.embed_tokens(ids_BN).flatten(0, 1)
        after = {}
        for number, layer in enumerate(self._layers, 1):
            x_MD = layer(x_MD, ids_BN.shape, cos, sin, cache, mask)
            if number in layers:
                after[number] = x_MD
        states_MC = join_states(_norm(self._inner.norm, x_MD), [after[number] for number in layers])
        return states_MC.unflatten(0, ids_BN.shape)

    def logits(self, hidden_BND: Tensor) -> Tensor:
        """Final hidden states [..., D] -> logits [..., V]."""
        return self._lm_head(hidden_BND.flatten(0, -2)).unflatten(0, hidden_BND.shape[:-1])


class _LeanLayer:
    """One decoder layer."""

    def __init__(self, layer: Any, index: int, may_copy: bool) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.index = index
        self.attention = attention
        self.head_dim = attention.head_dim
        self.num_kv_heads = attention.k_proj.out_features // self.head_dim
        self.num_heads = attention.q_proj.out_features // self.head_dim
        self.qkv: Product = product([attention.q_proj, attention.k_proj, attention.v_proj], may_copy)
        self.out: Product = product([attention.o_proj], may_copy)
        self.gate_up: Product = product([mlp.gate_proj, mlp.up_proj], may_copy)
        self.down: Product = product([mlp.down_proj], may_copy)
        self.inner_size = mlp.gate_proj.out_features
        self.norm_in = layer.input_layernorm
        self.norm_mlp = layer.post_attention_layernorm
        self.q_norm = getattr(attention, "q_norm", None)
        self.k_norm = getattr(attention, "k_norm", None)

    def __call__(
        self, x_MD: Tensor, shape: torch.Size, cos: Tensor, sin: Tensor, cache: Cache, mask: Tensor | None
    ) -> Tensor:
        H, G = self.num_heads, self.num_kv_heads
        heads = self.qkv(_norm(self.norm_in, x_MD)).view(*shape, H + 2 * G, self.head_dim)
        turned = heads[:, :, : H + G]
        if self.q_norm is not None and self.k_norm is not None:
            turned = torch.cat([_norm(self.q_norm, turned[:, :, :H]), _norm(self.k_norm, turned[:, :, H:])], 2)
        turned = torch.addcmul(turned * cos, turned.roll(self.head_dim // 2, -1), sin).transpose(1, 2)
        keys, values = cache.update(turned[:, H:], heads[:, :, H + G :].transpose(1, 2), self.index)
        seen, _ = tree_attention(self.attention, turned[:, :H], keys, values, mask, self.attention.scaling)
        x_MD = x_MD + self.out(seen.flatten(2).flatten(0, 1))
        gate_up = self.gate_up(_norm(self.norm_mlp, x_MD))
        inner_MF = silu(gate_up[:, : self.inner_size]) * gate_up[:, self.inner_size :]
        return x_MD + self.down(inner_MF)


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


def _norm(norm: nn.Module, x: Tensor) -> Tensor:
    weight: Any = norm.weight
    return rms_norm(x, weight.shape, weight, norm.variance_epsilon)  # type: ignore[arg-type]


def _rotations(inner: Any, num_positions: int) -> Tensor:
    """[at least num_positions, 2, E]; grows by doubling, so that longer texts seldom ask again."""
    num_positions = 1 << max(8, (num_positions - 1).bit_length())
    weight = inner.embed_tokens.weight
    positions = torch.arange(num_positions, device=weight.device)[None]
    cos, sin = inner.rotary_emb(torch.empty(0, dtype=weight.dtype, device=weight.device), positions)
    half = cos.shape[-1] // 2
    signed = torch.cat([-sin[..., :half], sin[..., half:]], -1)
    return torch.stack([cos[0], signed[0]], 1)


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
