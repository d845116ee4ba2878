"""Forward pass of the Llama family through the kernels of the registry, in decoding: the fast forward on a GPU.

It borrows the tensors of the loaded transformers model. A tree of tokens is read with lengths and ancestor masks in
device memory (`read_tree`): nothing is read by the host and no shape depends on a length, so a CUDA graph holds it.
Prompts, and levels of a drafting model, are read with a mask through torch's attention (`hidden`). Both write keys and
values by the same kernel into slots of a cache that was allocated before.

No window is given to the kernels: a base's context ends at its sliding window (families.context_length).

Letters: B batch, N nodes or tokens, M = B x N rows, D width, H query heads, G key/value heads, S slots, E head width,
L layers.
"""

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from euryale.base.fast_llama import state_of
from euryale.base.kernel_layer import Attend, KernelLayer, Norm, Places, backend_for, layer_kernels
from euryale.base.kernel_products import Products
from euryale.base.rope import half_tables
from euryale.base.tree_attention import tree_attention
from euryale.kernels.backends import on_card
from euryale.kernels.reference import pack_ancestors
from euryale.kernels.registry import Choice, choose
from euryale.kernels.rms_norm import normalise

log = logging.getLogger(__name__)


class Slots(NamedTuple):
    """Where a pass writes keys and values, and how much is committed there."""

    kv_L2BGSE: Tensor
    lengths_B: Tensor  # int32


class TreeBits(NamedTuple):
    """How the nodes of a tree hang together, as kernels take it."""

    depths_RN: Tensor  # int32
    words_RNW: Tensor  # int32; reference.pack_ancestors

    @staticmethod
    def of(depths_RN: Tensor, ancestors_RNN: Tensor) -> "TreeBits":
        return TreeBits(depths_RN.int().contiguous(), pack_ancestors(ancestors_RNN).contiguous())


class KernelLlama:
    """Token ids to final hidden states and logits, for decoding only."""

    is_exact = False

    @torch.no_grad()
    def __init__(self, model: PreTrainedModel, backend: str, nf4_runtime: str = "auto") -> None:
        """`model` must be one that fast_llama `fits`. Raises UserError where kernels that are named cannot run."""
        inner: Any = model.base_model
        weight = inner.embed_tokens.weight
        self._model, self._inner, self._backend = model, inner, backend
        self._device, self._dtype = weight.device, weight.dtype
        kernels = layer_kernels(self._device, backend, self._dtype, weight.shape[1], inner.layers[0].self_attn.head_dim)
        products = Products(self._device, self._dtype, backend_for("nf4_linear", backend), nf4_runtime)
        self._layers = [KernelLayer(layer, kernels, products) for layer in inner.layers]
        self._norm = Norm(inner.norm, kernels.rms_norm)
        self._lm_head = products.of([model.get_output_embeddings()])
        ways = ", ".join(f"{count} {way}" for way, count in products.ways.items())
        log.info("the kernel forward of %s: matrices %s", type(model).__name__, ways)
        self._weights = state_of(model)  # now: joined matrices have moved
        # Tables that were outgrown stay: a captured graph reads the one that it was captured with.
        self._tables: list[tuple[Tensor, Tensor]] = []
        self._attention: dict[tuple[int, int], Choice] = {}
        self._root = TreeBits.of(
            torch.zeros(1, 1, device=self._device), torch.ones(1, 1, 1, dtype=torch.bool, device=self._device)
        )

    def is_current(self) -> bool:
        """Whether the model's weights are still those that were joined."""
        return self._weights == state_of(self._model)

    def reserve(self, num_positions: int) -> None:
        """Prepares for positions below num_positions."""
        if not self._tables or len(self._tables[-1][0]) < num_positions:
            self._tables.append(half_tables(self._inner, num_positions))

    def attention(self, num_nodes: int, max_depth: int) -> Choice:
        """The attention of trees of at most so many nodes and so deep. Raises UserError where a backend that is named
        does not take them."""
        key = num_nodes, max_depth
        if key not in self._attention:
            first = self._layers[0]
            self._attention[key] = choose(
                "tree_attention", self._device, backend_for("tree_attention", self._backend), dtype=self._dtype,
                head_size=first.head_dim, group_size=first.num_heads // first.num_kv_heads, num_nodes=num_nodes,
                depth=max_depth,
            )  # fmt: skip
        return self._attention[key]

    def read_tree(
        self, ids_BN: Tensor, slots: Slots, tree: TreeBits, attention: Choice, layers: Sequence[int] = ()
    ) -> Tensor:
        """The states (as `hidden`) at the nodes of a tree after each row's committed slots.

        attention: of `attention`, for trees at least as large. Positions must be reserved. No value is read by the
        host.
        """
        kernel: Any = attention.function
        scaling = self._layers[0].scaling

        def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            return kernel(queries, keys, values, slots.lengths_B, tree.words_RNW, scaling)

        return self._read(ids_BN, slots, tree.depths_RN, attend, layers)

    def hidden(
        self, ids_BN: Tensor, positions_BN: Tensor, cache: Cache, mask: Tensor | None, layers: Sequence[int] = ()
    ) -> Tensor:
        """The final hidden states [B, N, D], and after them those of `layers` (join_states).

        `cache` is one of slots (KVCache); mask: None where one token sees all that is committed and itself.
        """
        ours: Any = cache
        slots: Slots = ours.slots()
        if mask is None:
            assert ids_BN.shape[1] == 1, "several tokens need a mask"
            return self.read_tree(ids_BN, slots, self._root, self.attention(1, 0), layers)
        attend = partial(_masked, self._inner, mask, ours.bound, self._layers[0].scaling)
        depths_BN = (positions_BN - slots.lengths_B[:, None]).int().contiguous()
        return self._read(ids_BN, slots, depths_BN, attend, layers)

    def logits(self, hidden_BND: Tensor) -> Tensor:
        """Final hidden states [..., D] -> logits [..., V]."""
        with on_card(self._device):
            return self._lm_head(hidden_BND.flatten(0, -2).contiguous()).unflatten(0, hidden_BND.shape[:-1])

    def _read(self, ids_BN: Tensor, slots: Slots, depths_RN: Tensor, attend: Attend, layers: Sequence[int]) -> Tensor:
        with on_card(self._device):
            places = Places(*self._tables[-1], slots.lengths_B, depths_RN)
            added_MD = self._inner.embed_tokens(ids_BN.flatten())
            total_MD: Tensor | None = None
            after: dict[int, Tensor] = {}
            for number, (layer, kv_2BGSE) in enumerate(zip(self._layers, slots.kv_L2BGSE.unbind(0), strict=True)):
                added_MD, total_MD, after_layer_MD = layer(added_MD, total_MD, kv_2BGSE, places, attend)
                if number in layers:
                    after[number] = after_layer_MD
            states_MC, last_MD = self._norm(added_MD, total_MD)
            after[len(self._layers)] = last_MD
            if layers:
                middle_MJD = normalise(torch.stack([after[number] for number in layers], 1))
                states_MC = torch.cat([states_MC, middle_MJD.flatten(1)], -1)
        return states_MC.unflatten(0, ids_BN.shape)

    @torch.no_grad()
    def read_sample(self, ids: list[int]) -> Tensor:
        """The final hidden states [1, T, D] of a text from its beginning: half as a prompt, half as a tree (a chain).

        For the check against the model itself.
        """
        T, first, device = len(ids), self._layers[0], self._device
        half = max(T // 2, T - 33)  # a chain is at most 32 deep
        self.reserve(T)
        kv = torch.zeros(
            len(self._layers), 2, 1, first.num_kv_heads, T, first.head_dim, dtype=self._dtype, device=device
        )
        ids_1T = torch.tensor([ids], device=device)
        causal_TT = torch.ones(T, T, dtype=torch.bool, device=device).tril()
        depths_1T = torch.arange(T, dtype=torch.int32, device=device)[None]
        mask = torch.zeros(half, half, dtype=self._dtype, device=device)
        mask = mask.masked_fill(~causal_TT[:half, :half], torch.finfo(self._dtype).min)[None, None]
        start = Slots(kv, torch.zeros(1, dtype=torch.int32, device=device))
        attend = partial(_masked, self._inner, mask, half, first.scaling)
        before_1TD = self._read(ids_1T[:, :half], start, depths_1T[:, :half].contiguous(), attend, ())
        rest = TreeBits.of(depths_1T[:, : T - half], causal_TT[None, : T - half, : T - half])
        attention = self.attention(T - half, T - half - 1)
        after_1TD = self.read_tree(ids_1T[:, half:], Slots(kv, start.lengths_B + half), rest, attention)
        return torch.cat([before_1TD, after_1TD], 1)


def _masked(
    module: torch.nn.Module, mask: Tensor, num_slots: int, scaling: float, queries: Tensor, keys: Tensor, values: Tensor
) -> Tensor:
    """Attention over the first num_slots slots; see Attend. All layers have the same scaling."""
    keys, values = keys[:, :, :num_slots], values[:, :, :num_slots]
    return tree_attention(module, queries.transpose(1, 2), keys, values, mask, scaling)[0]
