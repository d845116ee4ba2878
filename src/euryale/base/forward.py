"""Forward pass of decoding: the interface, and the transformers model itself as the slow twin."""

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from euryale.base.hidden_states import join_states, outputs_of_layers

# Takes a layer's new keys and values, [B, N, 2, G, E]; gives back all keys and all values, [B, G, S, E] each.
Store = Callable[[Tensor], tuple[Tensor, Tensor]]


class Forward(Protocol):
    """How decoding reads tokens: ids [B, N] to hidden states [B, N, D] to logits [B, N, V]."""

    @property
    def is_exact(self) -> bool:
        """Whether a row's numbers are proven not to depend on how many rows, nodes or neighbours are in a pass."""
        ...

    def is_current(self) -> bool:
        """Whether the model's weights are still those that it was made of."""
        ...

    def reserve(self, num_positions: int) -> None: ...
    def hidden(
        self, ids_BN: Tensor, positions_BN: Tensor, cache: Cache, mask: Tensor | None, layers: Sequence[int] = ()
    ) -> Tensor: ...
    def logits(self, hidden_BND: Tensor) -> Tensor: ...


class PlainForward:
    """The transformers model itself: every family, and the slow twin of the fast forward."""

    is_exact = False

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model

    def is_current(self) -> bool:
        """Always: it has nothing but the model."""
        return True

    def reserve(self, num_positions: int) -> None:
        """Nothing to prepare."""

    def hidden(
        self, ids_BN: Tensor, positions_BN: Tensor, cache: Cache, mask: Tensor | None, layers: Sequence[int] = ()
    ) -> Tensor:
        """The final hidden states [B, N, D], and after them those of `layers` (join_states).

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
