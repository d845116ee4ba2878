"""How does a tree of tokens grow out of scores?

Level by level. `ask` gives the scores of the tokens that may follow each parent of a level, over the vocabulary that
is drafted from; their best become the parent's children.

A FixedTree takes the candidates of the ranks that it was made of. BestFirst spends a budget of nodes where they look
likeliest in this step: the chance of a path is the product of its tokens' shares of the softmax of their scores. Where
the drafter is sure the tree becomes a chain, where it hesitates it becomes wide (Li et al. 2024, EAGLE-2, section 4).
Drafters tend to be surer than they are right: where it was counted how often the candidate of each rank is right, a
token's chance is the geometric mean of its share and that.

Letters: B batch, N nodes, V vocabulary, P parents of a level, C children of a level, R candidates a parent, M all
candidates of a step.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from euryale.decoding.drafters.interface import Draft
from euryale.decoding.tree.calibration import Calibration
from euryale.decoding.tree.tree import Budget, Shape, Tree

_MOST_RANKS = 10  # candidates a parent in a tree that grows best first: what calibration counts as well
MOST_PARENTS = 8  # nodes of a level whose children it asks for, in trees of _NODES_A_PARENT times as many and more
_NODES_A_PARENT = 8
_LEAST_CHANCE = -30.0  # of a token, in nats: keeps the sums small enough for the next line to count
_DEPTH_COST = 1e-4  # nats: puts a child behind its parent where rounding makes them equal


class Ask(Protocol):
    """Scores [B, P, V] of what may follow each parent; P = 1 where they are the same for all.

    The parents of level 0 are the roots. Below, slots says which parent of the level above each token continues
    ([P], or [B, P] where rows differ), and tokens_BP are the parents themselves.
    """

    def __call__(self, level: int, slots: Tensor | None, tokens_BP: Tensor | None) -> Tensor: ...


class Growth(Protocol):
    num_nodes: int
    max_depth: int

    def grow(self, root_B: Tensor, ask: Ask, draft_ids: Tensor | None) -> Draft:
        """draft_ids turns a place among the scores into a token; None: the place is the token."""
        ...

    def spread(self, log_q: list[Tensor]) -> Tensor | None:
        """What each level's candidates were drawn from, [B, P, V] -> the same by node, [B, N, V] (Draft.log_q_BNV).

        None where nothing was drawn, or where the tree chose among what was drawn: then candidates are named.
        """
        ...


def build_growth(
    tree: Tree | Budget,
    num_candidates: int,
    device: torch.device,
    per_parent: bool,
    calibration: Calibration | None = None,
) -> Growth:
    """per_parent: whether a parent's candidates depend on it, or are the same for its whole level."""
    if isinstance(tree, Budget):
        return BestFirst(tree, num_candidates, device, calibration)
    return FixedTree(tree, device, per_parent)


class _Level(NamedTuple):
    """The nodes of one depth and where their tokens come from."""

    nodes_P: Tensor  # the parents of this depth's nodes
    num_ranks: int  # candidates needed at each parent
    child_slots_C: Tensor  # node -> parent slot x num_ranks + rank, into the flattened candidates
    parents_P: Tensor  # the children (by index in this level) that are parents of the next level
    slots_P: Tensor  # each such child's own parent slot, whose path it continues


class FixedTree:
    """The same nodes in every step."""

    def __init__(self, tree: Tree, device: torch.device, per_parent: bool) -> None:
        self.num_nodes, self.max_depth = tree.num_nodes, tree.max_depth
        self._shape = Shape.of_tree(tree, device)
        self._levels = _plan(tree, per_parent, device)
        order = [0] + [node for depth in range(1, tree.max_depth + 1) for node in _nodes_at(tree, depth)]
        place = sorted(range(tree.num_nodes), key=order.__getitem__)
        self._place_N = None if place == list(range(tree.num_nodes)) else torch.tensor(place, device=device)

    def grow(self, root_B: Tensor, ask: Ask, draft_ids: Tensor | None) -> Draft:
        tokens = [root_B[:, None]]
        slots: Tensor | None = None
        parents_BP: Tensor | None = None
        for number, level in enumerate(self._levels):
            candidates = _best_ids(ask(number, slots, parents_BP), level.num_ranks)
            children_BC = candidates.flatten(1).index_select(1, level.child_slots_C)
            if draft_ids is not None:
                children_BC = draft_ids[children_BC]
            tokens.append(children_BC)
            slots, parents_BP = level.slots_P, children_BC.index_select(1, level.parents_P)
        tokens_BN = torch.cat(tokens, 1)
        return Draft(tokens_BN if self._place_N is None else tokens_BN.index_select(1, self._place_N), self._shape)

    def spread(self, log_q: list[Tensor]) -> Tensor | None:
        if not log_q:
            return None
        B, _, V = log_q[0].shape
        log_q_BNV = log_q[0].new_full((B, self.num_nodes, V), -torch.inf)  # a node without children draws nothing
        for level, log_q_BPV in zip(self._levels, log_q, strict=True):
            log_q_BNV[:, level.nodes_P] = log_q_BPV
        return log_q_BNV


def _best_ids(scores_xV: Tensor, num: int) -> Tensor:
    """The places of the best `num` scores, best first, [..., num]."""
    return scores_xV.argmax(-1, keepdim=True) if num == 1 else scores_xV.topk(num).indices


def _nodes_at(tree: Tree, depth: int) -> list[int]:
    return [node for node in range(tree.num_nodes) if tree.depths[node] == depth]


def _plan(tree: Tree, per_parent: bool, device: torch.device) -> list[_Level]:
    """Turns a tree into index tensors. Where a level's parents do not differ, one slot stands for all of them."""
    levels = []
    parents = [0]
    slot_of = {0: 0}
    has_child = set(tree.parents)
    for depth in range(1, tree.max_depth + 1):
        children = _nodes_at(tree, depth)
        num_ranks = max(tree.ranks[c] for c in children) + 1
        slots = [slot_of[tree.parents[c]] if per_parent else 0 for c in children]
        nodes_P = torch.tensor(parents, device=device)
        parents = [c for c in children if c in has_child]
        slot_of = {parent: slot for slot, parent in enumerate(parents)}
        levels.append(
            _Level(
                nodes_P=nodes_P,
                num_ranks=num_ranks,
                child_slots_C=torch.tensor(
                    [s * num_ranks + tree.ranks[c] for s, c in zip(slots, children, strict=True)], device=device
                ),
                parents_P=torch.tensor([children.index(p) for p in parents], dtype=torch.long, device=device),
                slots_P=torch.tensor([slots[children.index(p)] for p in parents], dtype=torch.long, device=device),
            )
        )
    return levels


class BestFirst:
    """The nodes that look best in this step; their number is the same in every step."""

    def __init__(
        self, budget: Budget, num_candidates: int, device: torch.device, calibration: Calibration | None = None
    ) -> None:
        self._device = device
        self._num_ranks = R = min(_MOST_RANKS, num_candidates, max(1, budget.num_nodes - 1))
        # Asking is what drafting costs. On the bundled base two parents gave trees of 4 and 8 nodes, and three those of
        # 16, the tokens a step that eight gave; trees of 64 lost 0.03 to 0.07 with four.
        self._num_parents = min(MOST_PARENTS, max(2, 1 + budget.num_nodes // _NODES_A_PARENT), budget.num_nodes - 1, R)
        self.max_depth = min(budget.max_depth, budget.num_nodes - 1)
        self.num_nodes = 1
        if self.max_depth:
            self.num_nodes = min(budget.num_nodes, 1 + R + (self.max_depth - 1) * self._num_parents * R)

        self._usual_halves: tuple[Tensor, ...] | None = None  # by level
        if calibration is not None:
            self._usual_halves = (_rank_chances(calibration, self.max_depth, R).log().to(device) / 2).unbind()

    def grow(self, root_B: Tensor, ask: Ask, draft_ids: Tensor | None) -> Draft:
        B, R = len(root_B), self._num_ranks
        chance_BP = torch.zeros(B, 1, device=self._device)  # logarithms, of the parents asked now
        parents_BP = torch.zeros(B, 1, dtype=torch.long, device=self._device)  # their places among all candidates
        tokens, chances, parents = [root_B[:, None]], [chance_BP + 1.0], [parents_BP]
        slots: Tensor | None = None
        asked_BP: Tensor | None = None
        for level in range(self.max_depth):
            best_BPR, ids_BPR = ask(level, slots, asked_BP).log_softmax(-1, dtype=torch.float32).topk(R)
            if self._usual_halves is not None:
                best_BPR = torch.add(self._usual_halves[level], best_BPR, alpha=0.5)
            chance_BM = (chance_BP[:, :, None] + best_BPR.clamp(min=_LEAST_CHANCE) - _DEPTH_COST).flatten(1)
            ids_BM = ids_BPR.expand(-1, chance_BP.shape[1], -1).flatten(1)
            if draft_ids is not None:
                ids_BM = draft_ids[ids_BM]
            first = sum(part.shape[1] for part in tokens)
            tokens.append(ids_BM)
            chances.append(chance_BM)
            parents.append(parents_BP[:, :, None].expand(-1, -1, R).flatten(1))
            if level + 1 < self.max_depth:
                chance_BP, best_BP = chance_BM.topk(self._num_parents)
                parents_BP, slots, asked_BP = first + best_BP, best_BP // R, ids_BM.gather(1, best_BP)
        return self._keep_best(torch.cat(tokens, 1), torch.cat(chances, 1), torch.cat(parents, 1))

    def spread(self, log_q: list[Tensor]) -> Tensor | None:
        return None

    def _keep_best(self, tokens_BM: Tensor, chances_BM: Tensor, parents_BM: Tensor) -> Draft:
        """The parent of whatever is kept is likelier, hence kept before it: the order is a tree's."""
        kept_BN = chances_BM.topk(self.num_nodes).indices
        place_BM = torch.zeros_like(tokens_BM)
        place_BM.scatter_(1, kept_BN, torch.arange(self.num_nodes, device=self._device).expand_as(kept_BN))
        parents_BN = place_BM.gather(1, parents_BM.gather(1, kept_BN))
        return Draft(tokens_BM.gather(1, kept_BN), Shape.of_parents(parents_BN, self.max_depth))


def _rank_chances(calibration: Calibration, num_depths: int, num_ranks: int) -> Tensor:
    """[K, R]: how often the candidate of this rank was right, given that the path above it was."""
    right_KR = torch.zeros(num_depths, num_ranks)
    reached_K = torch.zeros(num_depths + 1)
    reached_K[0] = 1.0
    for path, chance in zip(calibration.paths, calibration.probabilities, strict=True):
        if len(path) <= num_depths:
            reached_K[len(path)] += chance
            if path[-1] < num_ranks:
                right_KR[len(path) - 1, path[-1]] += chance
    return (right_KR / reached_K[:-1, None].clamp(min=1e-6)).clamp(min=1e-4)
