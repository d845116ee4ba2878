"""Hidden states of texts that are known: what decoding reads of them, where its forward is compiled, else transformers.

Of a compiled forward a token has the same bits in a text that is read at once as in one that is decoded. In 4 bits the
states of transformers would be those of another base.

Letters: B rows, T tokens, C numbers of all states that are asked for.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from euryale.base.base import Base
from euryale.base.compiled_llama import CompiledLlama


def text_states(base: Base, ids: list[int], layers: Sequence[int] = ()) -> Tensor:
    """States [T, C] of one text: the final ones, and after them those of `layers`, as forward_packed gives them."""
    forward = base.forward()
    if isinstance(forward, CompiledLlama):
        return forward.read_sample(ids, layers)[0]
    ids_1T = torch.tensor([ids], device=base.device)
    positions_1T = torch.arange(len(ids), device=base.device)[None]
    return base.forward_packed(ids_1T, positions_1T, torch.zeros_like(ids_1T), layers)[0]


def packed_states(
    base: Base, ids_BT: Tensor, positions_BT: Tensor, documents_BT: Tensor, layers: Sequence[int] = ()
) -> Tensor:
    """States [B, T, C] of packed documents, each of them from position 0; arguments as of forward_packed.

    Of padding they mean nothing.
    """
    if not isinstance(base.forward(), CompiledLlama):
        return base.forward_packed(ids_BT, positions_BT, documents_BT, layers)
    states_BTC = torch.zeros(*ids_BT.shape, (1 + len(layers)) * base.hidden_size, dtype=base.dtype)
    for ids_T, documents_T, states_TC in zip(ids_BT, documents_BT, states_BTC, strict=True):
        for document in documents_T.unique().tolist():
            if document >= 0:
                is_in_T = documents_T == document
                states_TC[is_in_T] = text_states(base, ids_T[is_in_T].tolist(), layers)
    return states_BTC
