"""One decoder layer of the kernel forward: every operation between two products is one kernel of the registry.

The sum of the residual stream is taken inside the norm that reads it, so a layer hands on what it adds and the sum so
far, not the sum of both.

Letters: B batch, N nodes or tokens, M = B x N rows, D width, H query heads, G key/value heads, S slots, E head width.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from euryale.base.kernel_products import Products
from euryale.kernels.registry import KERNELS, Choice, choose

# Takes queries [B, N, H, E], keys and values [B, G, S, E] of all slots; gives back [B, N, H, E].
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
Kernel = Callable[..., Any]


class LayerKernels(NamedTuple):
    """What a layer is made of, apart from its products and its attention."""

    rms_norm: Kernel
    kv_write: Kernel
    swiglu: Kernel


def backend_for(kernel: str, backend: str) -> str:
    """The backend that a kernel is asked of: the one named, where the kernel has one of that name, else `auto`."""
    return backend if any(backend == x.backend for x in KERNELS[kernel]) else "auto"


def layer_kernels(
    device: torch.device,
    backend: str,
    dtype: torch.dtype,
    width: int,
    head_size: int,
    ask: Callable[..., Choice] = choose,
) -> LayerKernels:
    """ask: `find` says nothing in the log. Raises UserError where the backend that is named cannot run one of them."""
    sizes: dict[str, dict[str, object]] = {
        "rms_norm": {"dtype": dtype, "width": width},
        "kv_write": {"dtype": dtype, "head_size": head_size},
        "swiglu": {"dtype": dtype},
    }
    return LayerKernels(*(ask(name, device, backend_for(name, backend), **sizes[name]).function for name in sizes))


class Places(NamedTuple):
    """Where the tokens of a pass are."""

    cos_TE: Tensor  # float32 [positions, E / 2]
    sin_TE: Tensor
    lengths_B: Tensor  # int32: the slot of each row's first token
    depths_RN: Tensor  # int32: a token is at position lengths_B + depth


class Norm:
    """A norm of transformers, with the sum before it."""

    def __init__(self, module: Any, kernel: Kernel) -> None:
        self.weight_D: Tensor = module.weight.detach()
        self.eps: float = module.variance_epsilon
        self._kernel = kernel

    def __call__(self, added_MD: Tensor, total_MD: Tensor | None) -> tuple[Tensor, Tensor]:
        """(the norm of the sum, the sum)"""
        normed_MD, total_MD = self._kernel(added_MD, self.weight_D, self.eps, total_MD)
        return normed_MD, total_MD


class KernelLayer:
    """The tensors of a transformers layer."""

    def __init__(self, layer: Any, kernels: LayerKernels, products: Products) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.head_dim: int = attention.head_dim
        self.num_kv_heads: int = attention.k_proj.out_features // self.head_dim
        self.num_heads: int = attention.q_proj.out_features // self.head_dim
        self.scaling: float = attention.scaling
        self.norm_in = Norm(layer.input_layernorm, kernels.rms_norm)
        self._norm_mlp = Norm(layer.post_attention_layernorm, kernels.rms_norm)
        self._head_norms: tuple[Tensor, Tensor, float] | None = None
        if hasattr(attention, "q_norm"):
            q_norm, k_norm = attention.q_norm, attention.k_norm
            self._head_norms = (q_norm.weight.detach(), k_norm.weight.detach(), q_norm.variance_epsilon)
        self._qkv = products.of([attention.q_proj, attention.k_proj, attention.v_proj])
        self._out = products.of([attention.o_proj])
        self._gate_up = products.of([mlp.gate_proj, mlp.up_proj])
        self._down = products.of([mlp.down_proj])
        self._kernels = kernels

    def __call__(
        self, added_MD: Tensor, total_MD: Tensor | None, kv_2BGSE: Tensor, places: Places, attend: Attend
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the layer adds and the sum before that, and the sum that came in: added + total."""
        B = len(places.lengths_B)
        keys, values = kv_2BGSE.unbind(0)
        normed_MD, before_MD = self.norm_in(added_MD, total_MD)
        heads = self._qkv(normed_MD).view(B, -1, self.num_heads + 2 * self.num_kv_heads, self.head_dim)
        queries = self._kernels.kv_write(
            heads, places.cos_TE, places.sin_TE, places.lengths_B, places.depths_RN, keys, values, self._head_norms
        )
        seen_BNHE = attend(queries, keys, values)
        normed_MD, total_MD = self._norm_mlp(self._out(seen_BNHE.flatten(2).flatten(0, 1)), before_MD)
        return self._down(self._kernels.swiglu(self._gate_up(normed_MD))), total_MD, before_MD
