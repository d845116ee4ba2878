"""Trees of tokens grown level by level out of logits.

A drafter is an iterator over levels: it yields the logits of the tokens that may follow each parent of a level, and is
sent the parents of the next level. The best tokens of a level become the parents' children.

A FixedGrowth takes the candidates of the ranks that its tree was made of. A DynamicGrowth spends a number of nodes
where they look likeliest in this step: the chance of a path is the product of its tokens' shares of the softmax of
their scores. Where the drafter is sure the tree becomes a chain, where it hesitates it becomes wide (Li et al. 2024,
EAGLE-2, section 4). Drafters tend to be surer than they are right: where it was counted how often the candidate of each
rank is right, a token's chance is the geometric mean of its share and that.

Letters: B batch, N nodes, V vocabulary, P parents of a level, C children of a level, R candidates a parent, M all
candidates of a step.
"""

from collections.abc import Generator
from typing import NamedTuple

import torch
from torch import Tensor

from euryale.decoding.drafters.best import TopK, torch_top_k
from euryale.decoding.drafters.interface import Draft, DraftInput
from euryale.decoding.tree.calibration import Calibration
from euryale.decoding.tree.tree import DynamicTree, Shape, Tree

_MOST_RANKS = 10  # candidates a parent in a dynamic tree: what calibration counts as well
_LEAST_CHANCE = -30.0  # of a token, in nats: keeps the sums small enough for the next line to count; NaN has it too
_DEPTH_COST = 1e-4  # nats: puts a child after its parent where rounding makes them equal


class Parents(NamedTuple):
    """The nodes of a level whose children are wanted next."""

    slots: Tensor  # which parent of the level above each of them continues; [P], or [B, P] where rows differ
    tokens_BP: Tensor


# Yields logits [B, P, V] of what may follow each parent of a level (P = 1 where they are the same for all parents), and
# is sent the parents of the next level. The only parent of level 0 is the root.
Levels = Generator[Tensor, Parents, None]


def build_growth(
    tree: Tree | DynamicTree,
    num_candidates: int,
    device: torch.device,
    per_parent: bool,
    calibration: Calibration | None = None,
    top_k: TopK = torch_top_k,
) -> "TreeGrowth":
    """per_parent: whether a parent's candidates depend on it, or are the same for its whole level."""
    if isinstance(tree, DynamicTree):
        return DynamicGrowth(tree, num_candidates, device, calibration, top_k)
    return FixedGrowth(tree, device, per_parent, top_k)


def rank(logits_BPV: Tensor, draft_input: DraftInput, level: int, ids: Tensor | None) -> Tensor:
    """The scores that candidates `level` + 1 tokens after the root are ranked by: those the verifier will draw with.

    Processed logits; at T > 0 divided by T, with their position's noise. `ids` are the tokens that the logits stand
    for; None: all.
    """
    if draft_input.process is not None:
        logits_BPV = draft_input.process(logits_BPV, ids, level == 0)
    if draft_input.noise_BPV is None:
        return logits_BPV
    noise_BV = draft_input.noise_BPV[:, level]
    if ids is not None:
        noise_BV = noise_BV[:, ids]
    return logits_BPV.float() / draft_input.temperature_B11 + noise_BV[:, None]


def log_q(scores_BPV: Tensor, draft_input: DraftInput, level: int, ids: Tensor | None) -> Tensor:
    """The log of what candidates with these scores were drawn from, [B, P, V], over the whole vocabulary.

    scores = log q + Gumbel noise (rank), so their best are a draw from q without replacement.
    """
    assert draft_input.noise_BPV is not None, "drawing needs noise"
    noise_BV = draft_input.noise_BPV[:, level]
    if ids is None:
        return (scores_BPV - noise_BV[:, None]).log_softmax(-1)
    log_q_BPV = scores_BPV.new_full((*scores_BPV.shape[:2], noise_BV.shape[-1]), -torch.inf)
    log_q_BPV[..., ids] = (scores_BPV - noise_BV[:, ids][:, None]).log_softmax(-1)
    return log_q_BPV


class _Level(NamedTuple):
    """The nodes of one depth and where their tokens come from."""

    nodes_P: Tensor  # the parents of this depth's nodes
    num_ranks: int  # candidates needed at each parent
    child_slots_C: Tensor  # node -> parent slot x num_ranks + rank, into the flattened candidates
    parents_P: Tensor  # the children (by index in this level) that are parents of the next level
    slots_P: Tensor  # each such child's own parent slot, whose path it continues


class FixedGrowth:
    """The same nodes in every step."""

    def __init__(self, tree: Tree, device: torch.device, per_parent: bool, top_k: TopK = torch_top_k) -> None:
        self._top_k = top_k
        self.tree, self.num_nodes, self.max_depth = tree, tree.num_nodes, tree.max_depth
        self.shape = Shape.of_tree(tree, device)
        self._levels = _plan_levels(tree, per_parent, device)
        order = [0] + [node for depth in range(1, tree.max_depth + 1) for node in _nodes_at(tree, depth)]
        place = sorted(range(tree.num_nodes), key=order.__getitem__)
        self._place_N = None if place == list(range(tree.num_nodes)) else torch.tensor(place, device=device)

    def grow(self, draft_input: DraftInput, levels: Levels, draft_ids: Tensor | None) -> Draft:
        """draft_ids turns a place among the logits into a token; None: the place is the token."""
        tokens = [draft_input.root_B[:, None]]
        drawn_from: list[Tensor] = []
        parents: Parents | None = None
        for number, level in enumerate(self._levels):
            logits_BPV = next(levels) if parents is None else levels.send(parents)
            scores_BPV = rank(logits_BPV, draft_input, number, draft_ids)
            if draft_input.draws:
                drawn_from.append(log_q(scores_BPV, draft_input, number, draft_ids))
            candidates = self._top_k(scores_BPV, level.num_ranks)[1]
            children_BC = candidates.flatten(1).index_select(1, level.child_slots_C)
            if draft_ids is not None:
                children_BC = draft_ids[children_BC]
            tokens.append(children_BC)
            parents = Parents(level.slots_P, children_BC.index_select(1, level.parents_P))
        tokens_BN = torch.cat(tokens, 1)
        if self._place_N is not None:
            tokens_BN = tokens_BN.index_select(1, self._place_N)
        return Draft(tokens_BN, self.shape, log_q_BNV=self._by_node(drawn_from))

    def _by_node(self, drawn_from: list[Tensor]) -> Tensor | None:
        """What each level's candidates were drawn from, [B, P, V] -> the same by node, [B, N, V]."""
        if not drawn_from:
            return None
        B, _, V = drawn_from[0].shape
        log_q_BNV = drawn_from[0].new_full((B, self.num_nodes, V), -torch.inf)  # a node without children draws nothing
        for level, log_q_BPV in zip(self._levels, drawn_from, strict=True):
            log_q_BNV[:, level.nodes_P] = log_q_BPV
        return log_q_BNV


def _nodes_at(tree: Tree, depth: int) -> list[int]:
    return [node for node in range(tree.num_nodes) if tree.depths[node] == depth]


def _plan_levels(tree: Tree, per_parent: bool, device: torch.device) -> list[_Level]:
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


class DynamicGrowth:
    """The nodes that look best in this step; their number is the same in every step."""

    def __init__(
        self,
        tree: DynamicTree,
        num_candidates: int,
        device: torch.device,
        calibration: Calibration | None = None,
        top_k: TopK = torch_top_k,
    ) -> None:
        self._device, self._top_k = device, top_k
        self.num_ranks = R = min(_MOST_RANKS, num_candidates, max(1, tree.num_nodes - 1))
        self.num_parents = min(tree.parents_asked, tree.num_nodes - 1, R)
        self.max_depth = min(tree.max_depth, tree.num_nodes - 1)
        self.num_nodes = 1
        if self.max_depth:
            self.num_nodes = min(tree.num_nodes, 1 + R + (self.max_depth - 1) * self.num_parents * R)

        self._least = torch.tensor(_LEAST_CHANCE, dtype=torch.float32, device=device)
        self.usual_halves_KR: Tensor | None = None
        if calibration is not None:
            self.usual_halves_KR = _rank_chances(calibration, self.max_depth, R).log().to(device) / 2

    def grow(self, draft_input: DraftInput, levels: Levels, draft_ids: Tensor | None) -> Draft:
        """As FixedGrowth.grow; candidates are named with certainty, because the tree chooses among what was drawn."""
        root_B, R = draft_input.root_B, self.num_ranks
        B = len(root_B)
        chance_BP = torch.zeros(B, 1, dtype=torch.float32, device=self._device)  # logarithms, of this level's parents
        parents_BP = torch.zeros(B, 1, dtype=torch.long, device=self._device)  # their places among all candidates
        tokens, chances, above = [root_B[:, None]], [chance_BP + 1.0], [parents_BP]
        parents: Parents | None = None
        for level in range(self.max_depth):
            logits_BPV = next(levels) if parents is None else levels.send(parents)
            scores_BPV = rank(logits_BPV, draft_input, level, draft_ids)
            best_BPR, ids_BPR = self._top_k(scores_BPV.log_softmax(-1, dtype=torch.float32), R)
            if self.usual_halves_KR is not None:
                best_BPR = torch.add(self.usual_halves_KR[level], best_BPR, alpha=0.5)
            # fmax takes the number where the other is NaN, which would be kept before its own parent.
            chance_BM = (chance_BP[:, :, None] + best_BPR.fmax(self._least) - _DEPTH_COST).flatten(1)
            ids_BM = ids_BPR.expand(-1, chance_BP.shape[1], -1).flatten(1)
            if draft_ids is not None:
                ids_BM = draft_ids[ids_BM]
            first = sum(part.shape[1] for part in tokens)
            tokens.append(ids_BM)
            chances.append(chance_BM)
            above.append(parents_BP[:, :, None].expand(-1, -1, R).flatten(1))
            if level + 1 < self.max_depth:
                chance_BP, best_BP = chance_BM.topk(self.num_parents)
                parents_BP, parents = first + best_BP, Parents(best_BP // R, ids_BM.gather(1, best_BP))
        return self._keep_best(torch.cat(tokens, 1), torch.cat(chances, 1), torch.cat(above, 1))

    def _keep_best(self, tokens_BM: Tensor, chances_BM: Tensor, parents_BM: Tensor) -> Draft:
        """The parent of whatever is kept is likelier, hence kept before it: the order is a tree's."""
        kept_BN = chances_BM.topk(self.num_nodes).indices
        place_BM = torch.zeros_like(tokens_BM)
        place_BM.scatter_(1, kept_BN, torch.arange(self.num_nodes, device=self._device).expand_as(kept_BN))
        parents_BN = place_BM.gather(1, parents_BM.gather(1, kept_BN))
        return Draft(tokens_BM.gather(1, kept_BN), Shape.of_parents(parents_BN, self.max_depth))


def _rank_chances(calibration: Calibration, num_depths: int, num_ranks: int) -> Tensor:
    """[K, R]: how often the candidate of this rank was right, given that the path above it was.

    At most 1, whatever is in the file: what is likelier than its parent would be kept before it.
    """
    right_KR = torch.zeros(num_depths, num_ranks, dtype=torch.float32)
    reached_K = torch.zeros(num_depths + 1, dtype=torch.float32)
    reached_K[0] = 1.0
    for path, chance in zip(calibration.paths, calibration.probabilities, strict=True):
        if len(path) <= num_depths:
            reached_K[len(path)] += chance
            if path[-1] < num_ranks:
                right_KR[len(path) - 1, path[-1]] += chance
    return (right_KR / reached_K[:-1, None].clamp(min=1e-6)).clamp(1e-4, 1.0)


TreeGrowth = FixedGrowth | DynamicGrowth
