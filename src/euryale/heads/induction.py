"""Induction: the token that followed the last tokens where they stood earlier in the text.

Text repeats itself: names, indentation, phrases of the question. A head sees the states and tokens of one place, so it
cannot know what a new token was followed by earlier; a base does that with attention, in induction heads (Olsson et al.
2022, arXiv 2209.11895). Here it is an index: the last earlier place where the last known tokens stood, the longest
suffix first, and the head reads the token after it. The search learns nothing and keeps nothing but token ids.

A place counts when the token after it was decided before drafting began, that is up to the root. Decoding finds the
same places in decoding/drafters/ngram_index.py.

Letters: B rows, T tokens, P = B x T places in the flattened rows, M sources, L suffix lengths.
"""

import torch
from torch import Tensor


def previous_places(ids_BT: Tensor, documents_BT: Tensor, longest: int, vocab_size: int) -> Tensor:
    """For every place the last one before it where the same suffix of 1, 2, .. `longest` tokens ends; [L, P].

    -1 where there is none in the same document. documents_BT: as in a packed batch, each a run of neighbours.
    """
    B, T = ids_BT.shape
    ids_P = ids_BT.flatten()
    begins_BT = torch.ones_like(documents_BT, dtype=torch.bool)
    begins_BT[:, 1:] = documents_BT[:, 1:] != documents_BT[:, :-1]
    begins_P = begins_BT.flatten()
    document_P = begins_P.cumsum(0)  # a number of its own for every document of every row
    starts_P = torch.where(begins_P, torch.arange(B * T, device=ids_P.device), 0).cummax(0).values
    depth_P = torch.arange(B * T, device=ids_P.device) - starts_P
    found_LP, class_P = [], document_P
    for length in range(1, longest + 1):
        if length > 1:
            class_P = class_P.roll(1)  # of the suffix one shorter that ends one place earlier
        previous_P, class_P = _previous_alike(class_P * vocab_size + ids_P)
        found_LP.append(previous_P.masked_fill(depth_P < length - 1, -1))
    return torch.stack(found_LP)


def followers(previous_LP: Tensor, sources_M: Tensor, num_known: int) -> Tensor:
    """The place after the last one, up to the source, where the suffix stood that ends `num_known` after it; [M].

    -1 where there is none.
    """
    last_M = sources_M + num_known
    found_M = torch.full_like(sources_M, -1)
    for previous_P in previous_LP.flip(0):
        place_M = previous_P[last_M]
        for _ in range(num_known - 1):  # each goes back by one place at least
            place_M = torch.where(place_M > sources_M, previous_P[place_M], place_M)
        found_M = torch.where(found_M < 0, place_M, found_M)
    return torch.where(found_M < 0, -1, found_M + 1)


def _previous_alike(key_P: Tensor) -> tuple[Tensor, Tensor]:
    """The place of the last equal key before each, or -1; and keys again as small numbers, equal where they were."""
    sorted_P, order_P = key_P.sort(stable=True)
    is_new_P = torch.ones_like(sorted_P, dtype=torch.bool)
    is_new_P[1:] = sorted_P[1:] != sorted_P[:-1]
    previous_P = torch.empty_like(order_P)
    previous_P[order_P] = torch.where(is_new_P, -1, order_P.roll(1))
    class_P = torch.empty_like(order_P)
    class_P[order_P] = is_new_P.cumsum(0)
    return previous_P, class_P
