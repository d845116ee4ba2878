"""Tokens a step that dynamic trees of every size gain, counted along known text.

Which nodes a dynamic tree takes is decided by what is drafted at a position, and not by what was accepted before. So at
every position all candidates are drawn up, of many positions at once, and it is noted how many nodes a tree must have
to hold the true next tokens: nodes are taken likeliest first, and a tree of n holds the first n. That gives tau of all
sizes that ask equally many parents for children, and the steps are then walked as those of fixed trees
(simulate_tau.py). Trees of fewer than 11 nodes also ask each parent for fewer candidates: where a later candidate was
counted to be right more often than an earlier one, they can hold another node than is counted here.

Letters: B positions at a time, T tokens, M positions, K depths, C numbers of all states, N nodes, V vocabulary.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from euryale.base.base import Base
from euryale.decoding.accept import accept_exact
from euryale.decoding.drafters.build import build_drafter, build_matrices
from euryale.decoding.drafters.interface import Drafter, DraftInput
from euryale.decoding.noise import gumbel
from euryale.decoding.tree.calibration import Calibration
from euryale.decoding.tree.tree import DynamicTree
from euryale.evaluation.rank_vectors import Text, positions
from euryale.evaluation.simulate_tau import walked
from euryale.heads.heads import Heads

_POSITIONS = 64  # at a time: the matrices are read once for all of them
_ALL = 1 << 20  # nodes: more than there are candidates
_NEVER = 1 << 30


class Known(NamedTuple):
    """A text that the base wrote, and what is known of it."""

    text: Text
    states_TC: Tensor
    ranks_MK: Tensor  # as rank_vectors
    usual: Calibration | None  # how often each rank was right, counted on the other half of the texts; None: on none


def dynamic_sizes(node_counts: Iterable[int], num_heads: int) -> list[DynamicTree]:
    """The dynamic trees to count: those that differ from fixed ones, of two levels and more."""
    return [DynamicTree(n, depth) for n in node_counts for depth in range(2, min(num_heads, n - 1) + 1)]


def count_dynamic(
    base: Base,
    heads: Heads,
    texts: Sequence[Known],
    sizes: Sequence[DynamicTree],
    temperature: float,
    coupled: bool = True,
) -> dict[DynamicTree, float]:
    """tau of each size along these texts, whose positions must not all be none."""
    matrices = build_matrices(base, heads)
    tau = {}
    for num_parents in sorted({size.parents_asked for size in sizes}):
        alike = [size for size in sizes if size.parents_asked == num_parents]
        every = DynamicTree(_ALL, heads.num_heads, num_parents)
        needed = []
        for known in texts:
            drafter = build_drafter("heads", base, heads, every, known.usual, matrices=matrices)
            needed.append(nodes_needed(base, drafter, known.text, known.states_TC, temperature, coupled))
        for size in alike:
            tau[size] = walked((each[:, size.max_depth - 1] <= size.num_nodes).sum(-1).tolist() for each in needed)
    return tau


@torch.inference_mode()
def nodes_needed(
    base: Base, drafter: Drafter, text: Text, states_TC: Tensor, temperature: float, coupled: bool = True
) -> Tensor:
    """[M, K, K]: the nodes that a tree must have to hold the true path, by the depth that it is held to and the path's.

    drafter: of a dynamic tree with all candidates; M: the text's `positions`. Counts are huge where no tree holds it.
    """
    K, places = drafter.max_depth, positions(text, drafter.max_depth)
    needed = [torch.empty(0, K, K, dtype=torch.long)]
    for start in range(0, len(places), _POSITIONS):
        some = places[start : start + _POSITIONS]
        needed.append(_needed_at(base, drafter, text, states_TC, some, temperature, coupled))
    return torch.cat(needed)


def _needed_at(
    base: Base,
    drafter: Drafter,
    text: Text,
    states_TC: Tensor,
    places: range,
    temperature: float,
    coupled: bool,
) -> Tensor:
    """The same for some positions: each is a row of its own, whose text ends with the root after it."""
    B, K, ids_T = len(places), drafter.max_depth, torch.tensor(text.ids, device=base.device)
    texts = [text.ids[: place + 2] for place in places]
    drafter = drafter.begin(B, len(text.ids))
    for row in range(B):
        drafter.add(row)
    if drafter.reads_text:
        states_BTC = states_TC[: places[-1] + 1].expand(B, -1, -1)
        drafter.read(0, states_BTC, [ids[1:] for ids in texts], [0] * B)
    noise_BKV = None
    if temperature > 0 and coupled:
        noise_MV = gumbel(text.seed, places[0] + 2, B + K - 1, base.vocab_size, base.device)
        noise_BKV = noise_MV.unfold(0, K, 1).transpose(1, 2)
    at_B = torch.tensor(places, device=base.device)
    draft = drafter.propose(
        DraftInput(states_TC[at_B], ids_T[at_B + 1], noise_BKV, temperature if temperature > 0 else 1.0, texts)
    )
    depths_BN = draft.shape.depths_RN
    targets_BN = ids_T[at_B[:, None] + 2 + depths_BN.clamp(max=K - 1)]
    is_right_BN = accept_exact(draft.tokens_BN, targets_BN, draft.shape, draft.is_real_BN)
    needed_BKK = torch.full((B, K, K), _NEVER)
    for held in range(1, K + 1):
        num_BN = (depths_BN <= held).cumsum(-1)  # nodes of such a tree that ends with this one
        for depth in range(1, held + 1):
            is_it_BN = is_right_BN & (depths_BN == depth)
            num_B = torch.where(is_it_BN.any(-1), (num_BN * is_it_BN).sum(-1), _NEVER)
            needed_BKK[:, held - 1, depth - 1] = num_B.cpu()
    return needed_BKK
