"""Ranks of the true next tokens under the heads, and the paths that are most often right.

For deterministic candidates the walk depends only on the ranks of the true next tokens under the heads. So the base's
own text is read once, and at every position the vector of those ranks is noted. The share of positions whose vector
starts with a path is that node's chance of being accepted: no independence between heads is assumed. A child is never
likelier than its parent, hence the best n-node tree is the root and the n - 1 most frequent paths: one sort.

Letters: B batch, T tokens, M positions, K heads, D width, C numbers of all states, V vocabulary.
"""

from collections import Counter
from typing import NamedTuple

import torch
from torch import Tensor

from euryale.base.base import Base
from euryale.base.text_states import text_states
from euryale.decoding.noise import gumbel
from euryale.decoding.tree.tree import Path
from euryale.heads.heads import Heads, PackedText
from euryale.kernels.rms_norm import normalise

_CHUNK = 256  # positions whose [M, V] scores exist at a time


class Text(NamedTuple):
    """What the base wrote after one opening."""

    ids: list[int]  # the opening included
    num_prompt: int
    seed: int


def positions(text: Text, num_heads: int) -> range:
    """Those that a step can start from: a root comes after each, and as many known tokens as there are heads."""
    first = max(text.num_prompt - 2, 0)  # the first root is the prompt's last token
    return range(first, max(first, len(text.ids) - 1 - num_heads))


@torch.inference_mode()
def read_states(base: Base, heads: Heads, text: Text) -> Tensor:
    """What the heads read of every position, [T, C]."""
    return text_states(base, text.ids, heads.layers_read(base.num_layers))


@torch.inference_mode()
def rank_vectors(
    base: Base,
    heads: Heads,
    text: Text,
    temperature: float,
    max_rank: int,
    coupled: bool = True,
    states_TC: Tensor | None = None,
) -> Tensor:
    """The rank of each of the K true next tokens under its head, at every one of the text's `positions`; [M, K].

    Ranks start at 0; max_rank stands for that and everything worse. At T > 0 coupled heads rank with the verifier's
    noise. states_TC: of read_states; None: read here.
    """
    K = heads.num_heads
    ids_T = torch.tensor(text.ids, device=base.device)
    first, M = positions(text, K).start, len(positions(text, K))
    if not M:
        return torch.empty(0, K, dtype=torch.long)
    hidden_1TC = (read_states(base, heads, text) if states_TC is None else states_TC)[None]
    positions_1T = torch.arange(len(ids_T), device=base.device)[None]
    documents_1T = torch.zeros_like(positions_1T)
    packed = PackedText(hidden_1TC, normalise(base.embed(ids_T[None])), positions_1T, documents_1T, ids_T[None])
    hidden_KMD = heads.guesses(packed, [torch.arange(first, first + M, device=base.device)] * K)
    # Token -> row of the draft vocabulary; a token outside of it is never a candidate.
    place_V = torch.full((base.vocab_size,), -1, device=base.device)
    draft_ids = torch.arange(base.vocab_size, device=base.device) if heads.draft_ids is None else heads.draft_ids
    place_V[draft_ids] = torch.arange(len(draft_ids), device=base.device)
    ranks_MK = torch.empty(M, K, dtype=torch.long)
    for start in range(0, M, _CHUNK):
        here = torch.arange(first + start, first + min(start + _CHUNK, M), device=base.device)
        for k in range(K):
            hidden_MD = hidden_KMD[k][start : start + len(here)]
            scores_MV = torch.nn.functional.linear(hidden_MD, heads.draft_weight(k, base.lm_head_weight)).float()
            if temperature > 0 and coupled:
                noise = gumbel(text.seed, int(here[0]) + 2 + k, len(here), base.vocab_size, base.device)
                scores_MV = scores_MV / temperature + noise[:, draft_ids]
            place_M1 = place_V[ids_T[here + 2 + k, None]]
            rank_M = (scores_MV > scores_MV.gather(1, place_M1.clamp(min=0))).sum(1).clamp(max=max_rank)
            ranks_MK[start : start + len(here), k] = rank_M.masked_fill(place_M1[:, 0] < 0, max_rank).cpu()
    return ranks_MK


def frequent_paths(ranks_MK: Tensor, max_rank: int, num_paths: int) -> tuple[list[list[int]], list[float]]:
    """The most frequent paths and their shares of all positions, parents before children.

    A path ends before the first rank of max_rank, which stands for "not among the candidates".
    """
    counts: Counter[Path] = Counter()
    for vector in ranks_MK.tolist():
        for depth in range(1, len(vector) + 1):
            if vector[depth - 1] >= max_rank:
                break
            counts[tuple(vector[:depth])] += 1
    best = sorted(counts.items(), key=lambda item: (-item[1], len(item[0]), item[0]))[:num_paths]
    return [list(path) for path, _ in best], [count / len(ranks_MK) for _, count in best]
