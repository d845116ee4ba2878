"""A smaller model drafts what it would write itself, and its cache follows the text."""

import random

import pytest
import torch
from random_models import FAMILIES, five_tokens, letter_tokenizer, random_base, random_prompts, twin
from torch import Tensor

from euryale.base.base import Base
from euryale.decoding.config import DrafterConfig, TreeConfig
from euryale.decoding.drafters.interface import Draft, DraftInput
from euryale.decoding.drafters.model import ModelDrafter, check_same_tokens, load_draft_base
from euryale.decoding.engine import Engine
from euryale.decoding.tree.tree import Tree, chain
from euryale.errors import UserError

V = 11
WIDE = Tree.from_paths([(0,), (1,), (4,), (0, 0), (0, 2), (1, 0), (0, 2, 1), (1, 0, 0)])


def scores_slowly(draft_base: Base, ids: list[int]) -> Tensor:
    return twin(draft_base)(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]


def known_of(texts: list[list[int]], noise_BPV: Tensor | None) -> DraftInput:
    hidden_BD = torch.zeros(len(texts), 16)
    return DraftInput(
        hidden_BD, torch.tensor([t[-1] for t in texts]), noise_BPV, 0.7 if noise_BPV is not None else 0.0, texts
    )


def check_ranks(draft_base: Base, tree: Tree, texts: list[list[int]], noise_BPV: Tensor | None, draft: Draft) -> None:
    """Every node carries the candidate of its rank, in the smaller model's own order after the node's path."""
    for row, text in enumerate(texts):
        tokens = draft.tokens_BN[row].tolist()
        for node in range(1, tree.num_nodes):
            path, above = [], tree.parents[node]
            while above > 0:
                path.insert(0, tokens[above])
                above = tree.parents[above]
            scores_V = scores_slowly(draft_base, text + path)
            if noise_BPV is not None:
                scores_V = scores_V.float() / 0.7 + noise_BPV[row, tree.depths[node] - 1]
            assert tokens[node] == int(scores_V.argsort(descending=True)[tree.ranks[node]])


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_node_is_what_the_smaller_model_says_there(family: str, temperature: float) -> None:
    """Texts that grow by any number of tokens, row by row, and now and then not at all, as ended rows do."""
    rng = random.Random(family)
    base = random_base("llama", V, dtype=torch.float64)
    draft_base = random_base(family, V, seed=9, dtype=torch.float64)
    texts = random_prompts(rng, 3, V, longest=9)
    generator = torch.Generator().manual_seed(0)
    drafter = ModelDrafter(base, draft_base, WIDE).begin(3, 40)
    for row in range(3):
        drafter.add(row)
    with torch.inference_mode():
        for _ in range(4):
            noise = -(-torch.rand(3, 4, V, generator=generator).log()).log() if temperature else None
            check_ranks(draft_base, WIDE, texts, noise, drafter.propose(known_of(texts, noise)))
            for text in texts:
                text += [rng.randrange(V) for _ in range(rng.randint(0, 4))]


def test_a_long_prompt_is_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("euryale.decoding.drafters.model._MOST_NEW", 7)
    base = random_base("llama", V, dtype=torch.float64)
    texts = random_prompts(random.Random(1), 4, V, longest=30)
    with torch.inference_mode():
        drafter = ModelDrafter(base, base, chain(3)).begin(4, 40)
        for row in range(len(texts)):
            drafter.add(row)
        draft = drafter.propose(known_of(texts, None))
    check_ranks(base, chain(3), texts, None, draft)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("tree", [chain(5), TreeConfig("dynamic", 12)], ids=["chain", "dynamic"])
def test_a_drafter_that_is_the_base_itself_is_never_wrong(tree: Tree | TreeConfig, temperature: float) -> None:
    base = five_tokens()
    engine = Engine(base, drafter=DrafterConfig("model", depth=5), tree=tree, draft_base=five_tokens())
    [plain] = Engine(base, drafter="none").generate([[0, 3, 1]], 36, temperature=temperature)
    [drafted] = engine.generate([[0, 3, 1]], 36, temperature=temperature)
    assert drafted.ids == plain.ids and drafted.num_steps <= 36 // (6 if isinstance(tree, Tree) else 2)


def test_output_matrices_may_be_padded_differently() -> None:
    base = random_base("llama", V, dtype=torch.float64)
    expected = Engine(base, drafter="none").generate([[1, 2]], 30, temperature=1.0)[0].ids
    for size in (V, V + 5):
        draft_base = random_base("qwen2", size, seed=3, dtype=torch.float64)
        draft_base.tokenizer = base.tokenizer
        check_same_tokens(draft_base, base)
        for tree in (TreeConfig("dynamic", 9), WIDE):
            engine = Engine(base, drafter=DrafterConfig("model", depth=3), tree=tree, draft_base=draft_base)
            assert engine.generate([[1, 2]], 30, temperature=1.0)[0].ids == expected


def test_a_model_that_does_not_fit_is_refused() -> None:
    base = random_base("llama", V)
    with pytest.raises(UserError, match="has another tokenizer than random-llama: 12 tokens against 11, and 1 of them"):
        Engine(base, drafter="model", draft_base=random_base("llama", V + 1))
    cut = random_base("llama", V - 2)
    cut.tokenizer = letter_tokenizer(V)
    with pytest.raises(UserError, match="output matrix of 9 rows for a tokenizer of 11 tokens"):
        Engine(base, drafter="model", draft_base=cut)
    with pytest.raises(UserError, match=r"drafter\.path=/no/such/model: there is no such folder"):
        load_draft_base("/no/such/model", random_base())
    with pytest.raises(UserError, match="Give drafter.path=FOLDER_OR_HUB_ID"):
        Engine(base, drafter="model")
    with pytest.raises(UserError, match="drafter=lookup uses none. Use drafter=model"):
        Engine(base, drafter=DrafterConfig("lookup", path="somewhere"))


@pytest.mark.parametrize("tree", [chain(4), TreeConfig("dynamic", 8)], ids=["chain", "dynamic"])
def test_nothing_is_drafted_beyond_the_smaller_model_s_context(tree: Tree | TreeConfig) -> None:
    """It is the base itself, with a shorter context: what it drafts there is right, and beyond there are no drafts."""
    base = five_tokens(max_length=60)
    small = five_tokens(max_length=60)
    small.max_length = 20
    engine = Engine(base, drafter=DrafterConfig("model", depth=4), tree=tree, draft_base=small)
    prompt = [0, 3, 1]
    [plain] = Engine(base, drafter="none").generate([prompt], 50)
    [drafted] = engine.generate([prompt], 50)
    assert drafted.ids == plain.ids
    length = len(prompt)
    for gained, num_nodes in zip(drafted.accepted, drafted.nodes, strict=True):
        assert (num_nodes == 1) == (length > 20), "a text that fills its context is not drafted on"
        assert gained <= max(20 - length + 2, 1)
        length += gained
    assert length > 40
    long, short = engine.generate([[1, 2] * 14, prompt], 12)
    assert max(long.accepted) == 1 and short.tau > 1.5, "one row is beyond it, the other is not"


def test_a_candidate_beyond_the_context_is_empty_and_those_before_are_what_the_model_says() -> None:
    base = random_base("llama", V, dtype=torch.float64)
    small = random_base("llama", V, seed=9, dtype=torch.float64)
    small.max_length = 10
    texts = random_prompts(random.Random(2), 3, V, longest=1)
    texts = [[text[0]] * length for text, length in zip(texts, (9, 10, 15), strict=True)]
    drafter = ModelDrafter(base, small, chain(3)).begin(3, 40)
    for row in range(3):
        drafter.add(row)
    with torch.inference_mode():
        draft = drafter.propose(known_of(texts, None))
    assert draft.is_real_BN is not None
    assert draft.is_real_BN.tolist() == [[True] * 3 + [False], [True] * 2 + [False] * 2, [True] + [False] * 3]
    for row, text in enumerate(texts[:2]):
        assert int(draft.tokens_BN[row, 1]) == int(scores_slowly(small, text).argmax())
