"""The ways in which infer/bench_steps.py takes steps, and a drafter whose drafts cost nothing and mean nothing."""

from typing import NamedTuple

import torch

from euryale.base.base import Base
from euryale.base.choose_forward import ForwardSettings
from euryale.decoding.drafters.interface import Draft, Drafter, DraftInput
from euryale.decoding.tree.tree import Shape, Tree


class Way(NamedTuple):
    """How steps run."""

    quantization: str
    settings: ForwardSettings
    has_heads: bool = False  # drafts are those of heads, on a dynamic tree; else AnyTokens


# dense: in the base's own dtype; nf4: its matrices in 4 bits.
WAYS: dict[str, Way] = {
    "dense": Way("none", ForwardSettings()),
    "dense_heads": Way("none", ForwardSettings(), has_heads=True),
    "dense_eager": Way("none", ForwardSettings(cuda_graphs=False)),
    "dense_transformers": Way("none", ForwardSettings("plain")),
    "nf4_kernel": Way("nf4", ForwardSettings(nf4_runtime="kernel")),
    "nf4_kernel_heads": Way("nf4", ForwardSettings(nf4_runtime="kernel"), has_heads=True),
    "nf4_bnb": Way("nf4", ForwardSettings(nf4_runtime="bnb")),
    "nf4_expand": Way("nf4", ForwardSettings(nf4_runtime="expand")),
}


def runs_on(way: Way, device: torch.device) -> bool:
    """Whether this way exists there: graphs and the 4-bit kernel are a GPU's."""
    return device.type == "cuda" or (way.settings.nf4_runtime != "kernel" and way.settings.cuda_graphs)


class AnyTokens(Drafter):
    """A binary tree whose nodes carry the tokens after the root's."""

    is_on_device = True

    def __init__(self, base: Base, num_nodes: int) -> None:
        parents = (-1, *((node - 1) // 2 for node in range(1, num_nodes)))
        tree = Tree(parents, (0, *((node - 1) % 2 for node in range(1, num_nodes))))
        self.num_nodes, self.max_depth = num_nodes, tree.max_depth
        self._shape = Shape.of_tree(tree, base.device)
        self._offsets_N = torch.arange(num_nodes, device=base.device)
        self._vocab_size = base.vocab_size

    def propose(self, draft_input: DraftInput) -> Draft:
        return Draft((draft_input.root_B[:, None] + self._offsets_N) % self._vocab_size, self._shape)
