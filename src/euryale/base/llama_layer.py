"""One decoder layer of the fast forward.

A norm divides by one number a row; its weights are multiplied into the matrices after it where those are copied.
Queries, keys and values are rotated together, values by nothing, so that what a cache takes is one piece.

Letters: B batch, N nodes or tokens, M rows (B x N and padding), D width, H query heads, G key/value heads, E head
width, S slots.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, silu

from euryale.base.forward import Store
from euryale.base.kernel_products import as_plain
from euryale.base.rope import apply_rope
from euryale.kernels.packed_linear import Linear, joined_linear
from euryale.kernels.rms_norm import norm_of
from euryale.kernels.row_blocks import RowCounts

# Takes queries [B, N, H, E], keys and values [B, G, S, E]; gives back [B x N or M, H E].
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class LlamaLayer:
    """The tensors of a transformers layer, joined where they read the same rows."""

    def __init__(self, layer: Any, may_copy: bool, expand_to: torch.dtype | None = None) -> None:
        """expand_to: what 4-bit matrices are expanded to; None: their modules are asked."""
        attention, mlp = layer.self_attn, layer.mlp

        def joined(modules: list[nn.Module], scale_I: Tensor | None = None) -> Linear:
            plain = modules if expand_to is None else [as_plain(module, expand_to) for module in modules]
            return joined_linear(plain, may_copy, scale_I)

        self.attention = attention
        self.head_dim: int = attention.head_dim
        self.num_kv_heads: int = attention.k_proj.out_features // self.head_dim
        self.num_heads: int = attention.q_proj.out_features // self.head_dim
        self.norm_in, self.norm_mlp = norm_of(layer, "input_layernorm"), norm_of(layer, "post_attention_layernorm")
        self.qkv = joined([attention.q_proj, attention.k_proj, attention.v_proj], self.norm_in.scale)
        self.out = joined([attention.o_proj])
        self.gate_up = joined([mlp.gate_proj, mlp.up_proj], self.norm_mlp.scale)
        self.down = joined([mlp.down_proj])
        self.linears = (self.qkv, self.out, self.gate_up, self.down)
        self.inner_size: int = mlp.gate_proj.out_features
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
        attend: Attend,
        rows: RowCounts,
    ) -> Tensor:
        """x [M, D], of which the first B x N rows are tokens and the others padding."""
        H, G, E = self.num_heads, self.num_kv_heads, self.head_dim
        num_tokens = shape.numel()
        heads = rows.in_blocks(self.qkv, self.norm_in(x_MD))[:num_tokens].view(*shape, H + 2 * G, E)
        if self.q_norm is not None and self.k_norm is not None:
            queries, keys = self.q_norm.whole(heads[:, :, :H]), self.k_norm.whole(heads[:, :, H : H + G])
            heads = torch.cat([queries, keys, heads[:, :, H + G :]], 2)
        rotated = apply_rope(heads, cos, sin)
        keys, values = store(rotated[:, :, H:].view(*shape, 2, G, E))
        seen = attend(rotated[:, :, :H], keys, values)
        if len(seen) != len(x_MD):
            seen = pad(seen, (0, 0, 0, len(x_MD) - len(seen)))
        x_MD = rows.in_blocks(self.out.onto, x_MD, seen)
        gate_up = rows.in_blocks(self.gate_up, self.norm_mlp(x_MD))
        inner_MF = silu(gate_up[:, : self.inner_size]) * gate_up[:, self.inner_size :]
        return rows.in_blocks(self.down.onto, x_MD, inner_MF)
