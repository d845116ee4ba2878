"""Every node of a tree gets the logits that transformers would give after its text alone.

Presence and frequency penalties, which transformers does not have, are compared with their definition, a loop.
"""

import random
from collections import Counter

import pytest
import torch
from random_models import random_tree
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from euryale.cli.schemas import InferConfig
from euryale.decoding.logits_processors import LogitsProcessors
from euryale.decoding.sampling import Sampling
from euryale.decoding.tree.tree import ROOT_ONLY, Shape, Tree

V = 11
END_IDS = (3, 7)
CPU = torch.device("cpu")


def path_to(tree: Tree, node: int) -> list[int]:
    path = [node]
    while tree.parents[path[0]] >= 0:
        path.insert(0, tree.parents[path[0]])
    return path


def as_generate_does(sampling: Sampling, num_prompt: int, text: list[int], logits_V: Tensor) -> Tensor:
    """transformers' own processors in the order of its `generate`, on one text; then the penalties it lacks."""
    processors = LogitsProcessorList()
    if sampling.logit_bias:
        processors.append(SequenceBiasLogitsProcessor({(token,): bias for token, bias in sampling.logit_bias.items()}))
    if sampling.repetition_penalty != 1.0:
        processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    scores_1V = processors(torch.tensor([text]), logits_V[None]).clone()
    counts = Counter(text[num_prompt:])
    for token, count in counts.items():
        scores_1V[0, token] -= sampling.frequency_penalty * count
        scores_1V[0, token] -= sampling.presence_penalty
    processors = LogitsProcessorList()
    if sampling.banned_tokens:
        processors.append(NoBadWordsLogitsProcessor([list(word) for word in sampling.banned_words()]))
    if sampling.min_new_tokens:
        processors.append(MinNewTokensLengthLogitsProcessor(num_prompt, sampling.min_new_tokens, list(END_IDS)))
    return processors(torch.tensor([text]), scores_1V)[0]


SETTINGS = {
    "repetition": Sampling(repetition_penalty=1.7),
    "repetition below 1": Sampling(repetition_penalty=0.6),
    "presence": Sampling(presence_penalty=0.8),
    "frequency": Sampling(frequency_penalty=-1.3),
    "bias": Sampling(logit_bias={0: 1.5, 4: -2.0, 10: -100.0}),
    "ban": Sampling(banned_tokens=[1, 9]),
    "ban sequences": Sampling(banned_tokens=[[0, 1], [1, 1], [2, 0, 1], [4, 2, 0, 3], [5] * 6, [8]]),
    "least length": Sampling(min_new_tokens=4),
    "all": Sampling(1.0, 0.9, 5, 0.1, 1.2, 0.5, 0.25, {2: 1.0}, [[0, 1], [1, 0], 6], 3),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_every_node_gets_the_logits_of_its_own_text(name: str) -> None:
    sampling = SETTINGS[name]
    rng = random.Random(name)
    generator = torch.Generator().manual_seed(0)
    num_changed = 0
    for trial in range(12):
        tree = ROOT_ONLY if trial == 0 else random_tree(rng, 6, 4, 20)
        # few tokens, so that paths repeat what is in the text and complete what is banned
        ids = [0, 1, 2] if trial % 2 else list(range(V))
        prompts = [rng.choices(ids, k=rng.randint(1, 6)) for _ in range(3)]
        processors = LogitsProcessors(3, V, CPU)
        texts = []
        for row, prompt in enumerate(prompts):
            processors.add(row, SETTINGS["all"], rng.choices(ids, k=5), [3])  # another request had the row before
            processors.extend([[]] * row + [rng.choices(ids, k=2)])
            processors.add(row, sampling, prompt, END_IDS)
            texts.append(list(prompt))
        for _ in range(rng.randint(0, 2)):
            gained = [rng.choices(ids, k=rng.randint(0, 3)) for _ in prompts]
            processors.extend(gained)
            for text, tokens in zip(texts, gained, strict=True):
                text += tokens
        tokens = [[text[-1], *rng.choices(ids, k=tree.num_nodes - 1)] for text in texts]
        logits = torch.randn(3, tree.num_nodes, V, generator=generator)
        found = processors.apply(logits.clone(), torch.tensor(tokens), Shape.of_tree(tree), texts)
        for row, text in enumerate(texts):
            for node in range(tree.num_nodes):
                whole = text + [tokens[row][n] for n in path_to(tree, node)[1:]]
                expected = as_generate_does(sampling, len(prompts[row]), whole, logits[row, node])
                torch.testing.assert_close(found[row, node], expected, rtol=1e-6, atol=1e-6)
        num_changed += not torch.equal(found, logits)
    assert num_changed >= 8, "the sample has something to process"


def test_rows_may_have_trees_of_their_own() -> None:
    rng = random.Random(0)
    trees = [Tree.from_paths([(0,), (0, 0), (0, 0, 0)]), Tree.from_paths([(0,), (1,), (1, 0)])]
    sampling = SETTINGS["all"]
    tokens = [[rng.randrange(3) for _ in range(4)] for _ in trees]
    logits = torch.randn(2, 4, V, generator=torch.Generator().manual_seed(1))
    texts = [[0, 1, row[0]] for row in tokens]
    alone = []
    for row, tree in enumerate(trees):
        processors = LogitsProcessors(1, V, CPU)
        processors.add(0, sampling, texts[row], END_IDS)
        alone.append(
            processors.apply(logits[row : row + 1], torch.tensor([tokens[row]]), Shape.of_tree(tree), [texts[row]])
        )
    together = LogitsProcessors(2, V, CPU)
    for row, text in enumerate(texts):
        together.add(row, sampling, text, END_IDS)
    parts = zip(*(Shape.of_tree(tree) for tree in trees), strict=True)
    both = Shape(*(torch.cat(part) for part in parts))
    assert torch.equal(together.apply(logits, torch.tensor(tokens), both, texts), torch.cat(alone))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_processed_logits_are_float32_at_least(dtype: torch.dtype) -> None:
    processors = LogitsProcessors(1, V, CPU)
    processors.add(0, Sampling(logit_bias={0: 0.1}), [0], ())
    found = processors.apply(
        torch.zeros(1, 1, V, dtype=dtype), torch.zeros(1, 1, dtype=torch.long), Shape.of_tree(ROOT_ONLY), [[0]]
    )
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_a_row_without_ends_has_none_of_the_row_before_it() -> None:
    processors = LogitsProcessors(1, V, CPU)
    logits_11V, root_11 = torch.randn(1, 1, V), torch.tensor([[2]])
    for end_ids in (END_IDS, ()):
        processors.add(0, Sampling(min_new_tokens=3), [1, 2], end_ids)
        found_11V = processors.apply(logits_11V, root_11, Shape.of_tree(ROOT_ONLY), [[1, 2]])
        assert int(found_11V.isinf().sum()) == len(end_ids)
        processors.swap_remove(0)


def test_without_such_a_setting_there_is_nothing_to_run() -> None:
    for sampling in (Sampling(), Sampling(0.7, 0.9, 10, 0.1), Sampling(banned_tokens=[]), InferConfig().sampling()):
        assert set(sampling.keywords()) <= {"temperature", "top_p", "top_k", "min_p"}
        assert not is_active(sampling) and not sampling.is_processed
    for sampling in SETTINGS.values():
        assert is_active(sampling) and sampling.is_processed


def is_active(sampling: Sampling) -> bool:
    processors = LogitsProcessors(2, V, CPU)
    processors.add(0, sampling, [1, 2], END_IDS)
    is_active = processors.is_active
    logits = torch.randn(1, 1, V)
    found = processors.apply(logits, torch.tensor([[2]]), Shape.of_tree(ROOT_ONLY), [[1, 2]])
    assert is_active or found is logits
    processors.swap_remove(0)
    assert not processors.is_active
    return is_active


GUESSED = [name for name in SETTINGS if name not in ("ban sequences", "least length", "all")]


@pytest.mark.parametrize("name", GUESSED)
def test_a_drafter_s_scores_behind_the_root_are_changed_as_the_base_s_are(name: str) -> None:
    """There the text is known, so the guess at the logits is what the verifier makes of them."""
    generator = torch.Generator().manual_seed(1)
    texts, num_prompt = [[1, 2, 4, 4, 9], [5, 5, 1], [0]], [3, 1, 1]
    processors = LogitsProcessors(3, V, CPU)
    for row, (text, num) in enumerate(zip(texts, num_prompt, strict=True)):
        processors.add(row, SETTINGS[name], text[:num], END_IDS)
    processors.extend([text[num:] for text, num in zip(texts, num_prompt, strict=True)])
    logits_B1V = torch.randn(3, 1, V, generator=generator, dtype=torch.float64)
    roots_B1 = torch.tensor([text[-1:] for text in texts])
    right_B1V = processors.apply(logits_B1V, roots_B1, Shape.of_tree(ROOT_ONLY), texts)
    found_B1V = processors.guess(logits_B1V, None)
    allowed_V = [token for token in range(V) if token not in (1, 9) or name != "ban"]
    torch.testing.assert_close(found_B1V[..., allowed_V], right_B1V[..., allowed_V])  # penalties are float32
    assert not torch.equal(found_B1V, logits_B1V)
    ids = torch.tensor([9, 0, 4, 2])
    assert torch.equal(processors.guess(logits_B1V[..., ids], ids), found_B1V[..., ids])
    if name == "ban":
        assert set(found_B1V.argmin(-1).flatten().tolist()) <= {1, 9} and found_B1V.isfinite().all()
