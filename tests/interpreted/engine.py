"""The whole engine through the Triton kernels in the interpreter: the text of plain decoding by other means.

One layer, few tokens: a step of two rows and six nodes is some two hundred interpreted programs.
"""

import pytest
from kernel_bases import kernel_base, with_backend
from random_models import FAMILIES, HEAD_DESIGNS, random_heads

from euryale.base.kernel_llama import KernelLlama
from euryale.decoding.engine import Engine
from euryale.decoding.tree.tree import Tree, chain

TREE = Tree.from_paths([(0,), (0, 0), (1,), (0, 1)])
PROMPTS = [[3, 1, 4, 1, 5], [9, 2]]


@pytest.mark.parametrize("family", FAMILIES)
def test_drafts_and_plain_decoding_give_the_text_of_the_cpu_s_own_forward(family: str) -> None:
    """Heads on a tree, copied chains, and no drafts; rows of different lengths, which join and leave."""
    base = kernel_base(family, "triton", num_hidden_layers=1)
    assert isinstance(base.forward(), KernelLlama)
    heads = random_heads(HEAD_DESIGNS[0], base)
    expected = [g.ids for g in Engine(with_backend(base, "auto"), drafter="none").generate(PROMPTS, 5)]
    for drafter, tree in (("none", None), ("heads", TREE), ("lookup", chain(2))):
        found = Engine(base, heads, drafter, tree).generate(PROMPTS, 5)
        assert [g.ids for g in found] == expected, drafter
