"""Who proposes the tokens of a tree?

A drafter fills the nodes of a fixed tree: `none` only repeats the root (autoregressive decoding), `heads` asks the
trained heads. All see the same thing: the base's hidden state at the last committed token, the root token that
follows it, and, when sampling, the keyed noise of the positions to come.

Letters: B batch, N nodes, K heads, D width, F inner width, V vocabulary, P parents of a level, C children of a level.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from euryale.decoding.tree import Tree
from euryale.errors import UserError
from euryale.model.base import Base
from euryale.model.heads import HeadBody, Heads, normalise

DRAFTERS = ("none", "heads")


class Known(NamedTuple):
    """What is known when a step begins."""

    hidden_BD: Tensor  # the base's final hidden state at the last committed token
    root_B: Tensor  # the token after it, decided but not in the cache yet
    noise_BPV: Tensor | None  # keyed noise of the positions after the root's, nearest first; None at T = 0
    temperature: float


class Drafter(Protocol):
    """Fills a tree with tokens, [B, N]; node 0 is the root."""

    tree: Tree

    def propose(self, known: Known) -> Tensor: ...


class NoDrafter:
    """Autoregressive decoding: the tree is the root."""

    def __init__(self, tree: Tree) -> None:
        assert tree.num_nodes == 1, "without a drafter there is nothing to put below the root"
        self.tree = tree

    def propose(self, known: Known) -> Tensor:
        return known.root_B[:, None]


class _Level(NamedTuple):
    """The nodes of one depth and where their tokens come from."""

    head: int  # the head that guesses here
    num_ranks: int  # candidates needed at each parent
    child_slots_C: Tensor  # node -> parent slot x num_ranks + rank, into the flattened candidates
    parents_P: Tensor  # the children (by index in this level) that are parents of the next level
    slots_P: Tensor  # each such child's own parent slot, whose path it continues


class HeadsDrafter:
    """The heads, evaluated once a parent (kind hydra) or once a depth (kind medusa).

    The fast twin of `Heads.head_hidden`: the part of every first matrix that reads the hidden state and the root is
    one product for all heads, and each level adds only what its path brings.
    """

    @torch.no_grad()
    def __init__(self, base: Base, heads: Heads, tree: Tree) -> None:
        self.base = base
        self.heads = heads
        self.tree = tree
        device = base.device
        self._levels = _plan(tree, per_parent=heads.config.kind == "hydra", device=device)
        order = [0] + [node for depth in range(1, tree.max_depth + 1) for node in _nodes_at(tree, depth)]
        place = sorted(range(tree.num_nodes), key=order.__getitem__)
        self._place_N = None if place == list(range(tree.num_nodes)) else torch.tensor(place, device=device)
        K, D = len(self._levels), heads.hidden_size
        firsts = [heads.blocks(k)[0] for k in range(K)]
        with_root = [
            torch.cat([f.hidden_in.weight] + ([f.tokens_in.weight[:, :D]] if f.tokens_in is not None else []), 1)
            for f in firsts
        ]
        # [K x F, D or 2 D] and [K x F]; a tree of the root alone asks no head, and cat refuses an empty list
        self._entry_weight = torch.cat(with_root).to(base.dtype) if K else torch.empty(0)
        self._entry_bias = torch.cat([f.hidden_in.bias for f in firsts]).to(base.dtype) if K else torch.empty(0)
        self._path_weights = [
            f.tokens_in.weight[:, D:].to(base.dtype).contiguous() if f.tokens_in is not None else torch.empty(0)
            for f in firsts
        ]
        self._bodies = [[_Finish(body, base.dtype) for body in heads.blocks(k)] for k in range(K)]
        self._draft_ids = heads.draft_ids
        if heads.config.output == "shared":
            self._outputs = [heads.draft_weight(0, base.lm_head_weight).to(base.dtype)] * K  # one copy serves all
        else:
            self._outputs = [heads.draft_weight(k, base.lm_head_weight).to(base.dtype) for k in range(K)]

    def propose(self, known: Known) -> Tensor:
        if not self._levels:
            return known.root_B[:, None]
        hidden_B1D = known.hidden_BD[:, None]
        entry = known.hidden_BD
        if self.heads.config.root_token:
            entry = torch.cat([entry, normalise(self.base.embed(known.root_B))], -1)
        inner_BKF = torch.nn.functional.linear(entry, self._entry_weight, self._entry_bias)
        inner_BKF = inner_BKF.unflatten(-1, (len(self._levels), -1))

        tokens = [known.root_B[:, None]]
        path_BPC: Tensor | None = None  # embeddings of each parent's path below the root, side by side
        for level in self._levels:
            k = level.head
            inner = inner_BKF[:, k : k + 1]
            if path_BPC is not None:
                inner = inner + torch.nn.functional.linear(path_BPC, self._path_weights[k])
            x_BPD = hidden_B1D
            for layer, body in enumerate(self._bodies[k]):
                x_BPD = body(x_BPD, inner if layer == 0 else None)
            scores_BPV = torch.nn.functional.linear(x_BPD, self._outputs[k])
            candidates = self._best(scores_BPV, known, k, level.num_ranks)
            children_BC = candidates.flatten(1)[:, level.child_slots_C]
            if self._draft_ids is not None:
                children_BC = self._draft_ids[children_BC]
            tokens.append(children_BC)
            if len(level.parents_P) and self.heads.config.kind == "hydra":
                new_BPD = normalise(self.base.embed(children_BC[:, level.parents_P]))
                path_BPC = new_BPD if path_BPC is None else torch.cat([path_BPC[:, level.slots_P], new_BPD], -1)
        tokens_BN = torch.cat(tokens, 1)
        return tokens_BN if self._place_N is None else tokens_BN[:, self._place_N]

    def _best(self, scores_BPV: Tensor, known: Known, k: int, num_ranks: int) -> Tensor:
        """The first candidates, [B, P, num_ranks], ranked with the noise that the verifier will draw with."""
        if known.noise_BPV is not None:
            noise_BV = known.noise_BPV[:, k]
            if self._draft_ids is not None:
                noise_BV = noise_BV[:, self._draft_ids]
            scores_BPV = scores_BPV.float() / known.temperature + noise_BV[:, None]
        if num_ranks == 1:
            return scores_BPV.argmax(-1, keepdim=True)
        return scores_BPV.topk(num_ranks).indices


class _Finish:
    """A head body with its matrices in the base's dtype."""

    def __init__(self, body: HeadBody, dtype: torch.dtype) -> None:
        self.weight = None if body.out is None else body.out.weight.to(dtype)
        self.entry_weight = body.hidden_in.weight.to(dtype)
        self.entry_bias = body.hidden_in.bias.to(dtype)

    def __call__(self, x: Tensor, inner: Tensor | None) -> Tensor:
        if inner is None:
            inner = torch.nn.functional.linear(x, self.entry_weight, self.entry_bias)
        inner = torch.nn.functional.silu(inner)
        return x + (inner if self.weight is None else torch.nn.functional.linear(inner, self.weight))


def _nodes_at(tree: Tree, depth: int) -> list[int]:
    return [node for node in range(tree.num_nodes) if tree.depths[node] == depth]


def _plan(tree: Tree, per_parent: bool, device: torch.device) -> list[_Level]:
    """Turns a tree into index tensors, one level a head. Parents of one level differ only for kind hydra."""
    levels = []
    parents = [0]
    slot_of = {0: 0}
    has_child = set(tree.parents)
    for depth in range(1, tree.max_depth + 1):
        children = _nodes_at(tree, depth)
        num_ranks = max(tree.ranks[c] for c in children) + 1
        slots = [slot_of[tree.parents[c]] if per_parent else 0 for c in children]
        parents = [c for c in children if c in has_child]
        slot_of = {parent: slot for slot, parent in enumerate(parents)}
        levels.append(
            _Level(
                head=depth - 1,
                num_ranks=num_ranks,
                child_slots_C=torch.tensor(
                    [s * num_ranks + tree.ranks[c] for s, c in zip(slots, children, strict=True)], device=device
                ),
                parents_P=torch.tensor([children.index(p) for p in parents], dtype=torch.long, device=device),
                slots_P=torch.tensor([slots[children.index(p)] for p in parents], dtype=torch.long, device=device),
            )
        )
    return levels


def build_drafter(name: str, base: Base, heads: Heads | None, tree: Tree) -> Drafter:
    """Raises UserError for an unknown name, or for `heads` where no heads were loaded."""
    if name == "none":
        return NoDrafter(tree)
    if name != "heads":
        raise UserError(f"drafter={name} is not known. Choose one of: {', '.join(DRAFTERS)}.")
    if heads is None:
        raise UserError("drafter=heads needs a heads checkpoint, and only a base was given. Give one, or drafter=none.")
    return HeadsDrafter(base, heads, tree)
