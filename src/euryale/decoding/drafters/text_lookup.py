"""Prompt lookup over texts in device memory: the fast twin of lookup.py's Memory, without a value that the host reads.

The same places, weights and trie as there. The trie is the places' continuations side by side: those that say the same
from their beginning on are one node, which the latest of them stands for.

Letters: B batch, S slots, K places, D tokens of a continuation, M = K x D candidates, N nodes, X tokens compared.
"""

import torch
from torch import Tensor

from euryale.decoding.device_text import DeviceText
from euryale.decoding.drafters.interface import Draft
from euryale.decoding.tree.tree import Shape

ANCHOR = 3  # tokens that decide which places count; longer matches are compared
LONGEST = 16  # tokens compared at most
MOST_PLACES = 32  # the latest ones: a common token stands in many places


class TextLookup:
    """What may follow texts as they are at the beginning of a step."""

    def __init__(self, text: DeviceText, depth: int) -> None:
        """depth: tokens of a continuation, at most."""
        lengths_B1 = text.lengths_B[:, None].long()
        agreeing_BS = _agreement(text.tokens_BS, lengths_B1)
        S, device = agreeing_BS.shape[1], agreeing_BS.device
        # The longest anchor that is found decides which places count, and of those the latest.
        least_B1 = agreeing_BS.amax(-1, keepdim=True).clamp(1, ANCHOR)
        places_BS = torch.arange(S, device=device).masked_fill(agreeing_BS < least_B1, -1)
        places_BK = places_BS.topk(min(MOST_PLACES, S)).values
        is_place_BK = places_BK >= 0
        known_BK = agreeing_BS.gather(1, places_BK.clamp(min=0)).float()
        weights_BK = 4.0**known_BK * is_place_BK
        share_BK = weights_BK / weights_BK.sum(-1, keepdim=True).clamp(min=1.0)
        place_D = torch.arange(1, depth + 1, device=device)
        chances_BKD = share_BK[..., None] * (known_BK / (known_BK + 1))[..., None] ** place_D
        slots_BKD = places_BK[..., None] + place_D
        is_there_BKD = is_place_BK[..., None] & (slots_BKD <= lengths_B1[..., None])
        flat_BM = text.tokens_BS.gather(1, slots_BKD.clamp(max=S - 1).flatten(1))
        self._tokens_BKD, self._is_there_BKD = flat_BM.long().view_as(slots_BKD), is_there_BKD
        is_alike = (self._tokens_BKD[:, :, None] == self._tokens_BKD[:, None]) & is_there_BKD[:, None]
        self._is_one_BKKD = is_alike.int().cumprod(-1).bool()  # the same node: alike from the beginning on
        self._chances_BKD = (self._is_one_BKKD * chances_BKD[:, None]).sum(2)

    def draft(self, root_B: Tensor, num_nodes: int, max_depth: int) -> Draft:
        """The likeliest nodes. Where fewer are known than num_nodes, the others carry no candidate."""
        B, K, D = self._tokens_BKD.shape
        device = root_B.device
        first_BKD = self._is_one_BKKD.int().argmax(2)
        is_first_BKD = self._is_there_BKD & (first_BKD == torch.arange(K, device=device)[:, None])
        best_BN, kept_BN = self._chances_BKD.masked_fill(~is_first_BKD, 0.0).flatten(1).topk(min(num_nodes - 1, K * D))
        is_real_BN = best_BN > 0
        # Nodes and candidates are numbered from 1 on; 0 is the root. A parent is likelier than its children (it holds
        # them all, at a higher power), hence kept before them.
        above_BKD = torch.nn.functional.pad(first_BKD[..., :-1] * D + torch.arange(1, D, device=device), (1, 0))
        numbers_BN = torch.arange(1, kept_BN.shape[1] + 1, device=device).expand_as(kept_BN)
        node_of_BM = torch.zeros(B, 1 + K * D, dtype=torch.long, device=device).scatter(1, kept_BN + 1, numbers_BN)
        parents_BN = node_of_BM.gather(1, above_BKD.flatten(1).gather(1, kept_BN)) * is_real_BN
        tokens_BN = self._tokens_BKD.flatten(1).gather(1, kept_BN)
        return Draft(
            torch.cat([root_B[:, None], tokens_BN], 1),
            Shape.of_parents(torch.nn.functional.pad(parents_BN, (1, 0)), max_depth),
            torch.nn.functional.pad(is_real_BN, (1, 0), value=True),
        )

    def chain(self) -> tuple[Tensor, Tensor]:
        """The likeliest continuation: tokens [B, D], and how many of them there are [B]."""
        is_alive_BK, tokens, has_token = self._is_there_BKD[..., 0], list[Tensor](), list[Tensor]()
        for depth in range(self._tokens_BKD.shape[2]):
            chances_BK = self._chances_BKD[..., depth].masked_fill(~(is_alive_BK & self._is_there_BKD[..., depth]), 0.0)
            best_B1 = chances_BK.argmax(-1, keepdim=True)
            tokens.append(self._tokens_BKD[..., depth].gather(1, best_B1))
            has_token.append(chances_BK.gather(1, best_B1) > 0)
            is_one_BKK = self._is_one_BKKD[..., depth]
            is_alive_BK = (
                is_alive_BK & is_one_BKK.gather(1, best_B1[..., None].expand(-1, 1, is_one_BKK.shape[2]))[:, 0]
            )
        return torch.cat(tokens, 1), torch.cat(has_token, 1).sum(-1)


def _agreement(tokens_BS: Tensor, lengths_B1: Tensor) -> Tensor:
    """How many of the last tokens, LONGEST at most, stand up to each place as well, int32; 0 from the root on."""
    S, device = tokens_BS.shape[1], tokens_BS.device
    # Of every place the tokens up to it, the oldest first; what lies before a text is -1. A view: nothing is copied.
    windows_BSX = torch.nn.functional.pad(tokens_BS, (LONGEST - 1, 0), value=-1).unfold(1, LONGEST, 1)
    slots_BX = lengths_B1 - torch.arange(LONGEST - 1, -1, -1, device=device)
    is_alike_BSX = windows_BSX == tokens_BS.gather(1, slots_BX.clamp(min=0))[:, None]
    agreeing_BS = is_alike_BSX.flip(-1).cumprod(-1, dtype=torch.int8).sum(-1, dtype=torch.int32)
    return agreeing_BS.masked_fill(torch.arange(S, device=device) >= lengths_B1, 0)
