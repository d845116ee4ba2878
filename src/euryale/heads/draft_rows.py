"""Which rows of a head's correction a checkpoint holds: those of the draft vocabulary.

Training and drafting read no other row, and the others are zero as they began. With heads.vocab_share below 1 they
would only make the file larger (SmolLM2 with vocab_share=0.17 and output_rank=32: 10 of 33 MB).

Letters: V vocabulary, R numbers of a row, S tokens of the draft vocabulary.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

IDS = "draft_ids"


def _has_rows(name: str) -> bool:
    """Whether this tensor of Heads.state_dict() is the half of a correction with a row for each token."""
    return name.startswith("corrections.") and name.endswith(".widen.weight")


def drop_rows(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of Heads.state_dict() with the rows of the draft vocabulary alone: [V, R] -> [S, R]."""
    ids_S = tensors.get(IDS)
    if ids_S is None:
        return dict(tensors)
    return {name: tensor[ids_S.to(tensor.device)] if _has_rows(name) else tensor for name, tensor in tensors.items()}


def stored_shapes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The shapes that `drop_rows` leaves of these."""
    num_S = shapes[IDS][0] if IDS in shapes else None
    return {
        name: shape if num_S is None or not _has_rows(name) else (num_S, *shape[1:]) for name, shape in shapes.items()
    }


def add_rows(tensors: Mapping[str, Tensor], vocab_size: int) -> dict[str, Tensor]:
    """The inverse of `drop_rows`; rows that are not there are zero."""
    ids_S = tensors.get(IDS)
    if ids_S is None:
        return dict(tensors)
    return {
        name: torch.zeros(vocab_size, *tensor.shape[1:], dtype=tensor.dtype).index_copy_(0, ids_S, tensor)
        if _has_rows(name)
        else tensor
        for name, tensor in tensors.items()
    }
