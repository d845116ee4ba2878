"""Random trees as the kernels take them: ancestors as bools, words and parents."""

import torch
from torch import Tensor


def random_tree(num_nodes: int, max_depth: int = 32) -> Tensor:
    """Ancestors [1, N, N] of a random tree, bool; parents come before their children."""
    seen = torch.eye(num_nodes, dtype=torch.bool)
    for node in range(1, num_nodes):
        parent = int(torch.randint(max(0, node - 9), node, ()))
        while seen[parent].sum() > max_depth:
            parent = int(torch.randint(0, node, ()))
        seen[node] |= seen[parent]
    return seen[None]


def deep_tree(num_nodes: int, max_depth: int = 32) -> Tensor:
    """A chain as deep as allowed; nodes that are left hang below the nodes of that chain, one each."""
    seen = torch.eye(num_nodes, dtype=torch.bool)
    for node in range(1, num_nodes):
        seen[node] |= seen[node - 1 if node <= max_depth else node - max_depth]
    return seen[None]


def parents_of(ancestors_RNN: Tensor) -> Tensor:
    """int32 [R, N]; the root's parent is itself."""
    N = ancestors_RNN.shape[-1]
    above = ancestors_RNN & ~torch.eye(N, dtype=torch.bool)
    return torch.where(above, torch.arange(N), 0).amax(-1).int()
