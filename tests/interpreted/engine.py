"""The whole engine through the Triton kernels in the interpreter: the text of plain decoding by other means.

One layer, one key/value head, few tokens: a step of two rows is about a hundred interpreted programs.
"""

import pytest
from kernel_bases import kernel_base, with_backend
from random_models import FAMILIES, HEAD_DESIGNS, random_heads

from euryale.base import base as base_module
from euryale.base.kernel_llama import KernelLlama
from euryale.decoding.engine import Engine
from euryale.decoding.tree.tree import Tree, chain

TREE = Tree.from_paths([(0,), (0, 0), (1,)])
PROMPTS = [[3, 1, 4], [9, 2]]


WAYS = [(family, "heads", TREE) for family in FAMILIES] + [("mistral", "lookup", chain(1))]


@pytest.mark.parametrize(
    ("family", "drafter", "tree"), WAYS, ids=[f"{family} {drafter}" for family, drafter, _ in WAYS]
)
def test_drafts_give_the_text_of_the_cpu_s_own_forward(
    family: str, drafter: str, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heads on a tree (the step on the device) and, over a window, copied chains (the decoder's own step); rows of two
    lengths."""
    monkeypatch.setattr(base_module, "sample_ids", lambda tokenizer, vocab_size: [1, 5, 2, 8, 3, 9])
    base = kernel_base(family, "triton", num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1)
    assert isinstance(base.forward(), KernelLlama)
    heads = random_heads(HEAD_DESIGNS[0], base)
    expected = [g.ids for g in Engine(with_backend(base, "auto"), drafter="none").generate(PROMPTS, 4)]
    found = Engine(base, heads, drafter, tree).generate(PROMPTS, 4)
    assert [g.ids for g in found] == expected


def test_plain_decoding_draws_the_tokens_of_the_cpu_s_own_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_module, "sample_ids", lambda tokenizer, vocab_size: [1, 5, 2, 8, 3, 9])
    base = kernel_base("llama", "triton", num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1)
    ways = (base, with_backend(base, "auto"))
    found, expected = ([g.ids for g in Engine(b, drafter="none").generate(PROMPTS, 4, temperature=0.9)] for b in ways)
    assert found == expected
