"""Ranks are those of a slow walk, and the paths counted from them accept most."""

import itertools
from collections.abc import Iterator, Sequence

import pytest
import torch
from calibration_cases import DESIGNS, MAX_RANK, written
from compiled_models import compiled_base, specified
from random_models import random_base, random_heads, twin

from euryale.base.base import Base
from euryale.base.hidden_states import join_states
from euryale.decoding.decoder import Decoder
from euryale.decoding.drafters.build import build_drafter
from euryale.decoding.noise import gumbel
from euryale.decoding.request import Request
from euryale.decoding.sampling import Sampling
from euryale.decoding.tree.calibration import Calibration
from euryale.decoding.tree.tree import Tree
from euryale.evaluation import rank_vectors as module
from euryale.evaluation.rank_vectors import Text, frequent_paths, rank_vectors, read_states
from euryale.heads.heads import Heads
from euryale.kernels.rms_norm import normalise


@pytest.fixture(scope="module")
def base() -> Base:
    """float64, so that no two scores are close; a seed whose greedy answers do not loop soon."""
    return random_base(vocab_size=13, seed=11, dtype=torch.float64)


def slow_rank(base: Base, heads: Heads, ids: list[int], t: int, k: int, temperature: float, seed: int) -> int:
    """Head k's rank of the true token at t + 2 + k: one position, transformers' own forward, a whole sort."""
    out = twin(base).base_model(torch.tensor([ids[: t + 1]]), use_cache=False, output_hidden_states=True)
    layers = heads.layers_read(base.num_layers)
    hidden_D = join_states(out.last_hidden_state, [out.hidden_states[layer] for layer in layers])[0, -1]
    embedded_JD = normalise(base.embed(torch.tensor(ids[t + 1 : t + 2 + k])))
    head_hidden_D = heads.head_hidden(k, hidden_D[None], embedded_JD[None])[0]
    scores_V = heads.output_weight(k, base.lm_head_weight) @ head_hidden_D
    if temperature > 0:
        scores_V = scores_V.float() / temperature + gumbel(seed, t + 2 + k, 1, base.vocab_size, base.device)[0]
    candidates = range(base.vocab_size) if heads.draft_ids is None else heads.draft_ids.tolist()
    order = sorted(candidates, key=lambda token: -float(scores_V[token]))
    true = ids[t + 2 + k]
    return min(order.index(true), MAX_RANK) if true in order else MAX_RANK


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("design", DESIGNS)
def test_rank_vectors_are_those_of_a_slow_walk(
    base: Base, design: str, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CHUNK", 5)  # several chunks, the last one not full
    heads = random_heads(DESIGNS[design], base)
    text = written(base, [4, 1, 7], temperature)
    found = rank_vectors(base, heads, text, temperature, MAX_RANK)
    first = 1  # the state that the prompt's last token, the first root, follows from
    expected = [
        [slow_rank(base, heads, text.ids, t, k, temperature, text.seed) for k in range(3)]
        for t in range(first, len(text.ids) - 1 - 3)
    ]
    assert found.tolist() == expected
    assert len({rank for vector in expected for rank in vector}) > 3, "the case tells ranks apart"
    if "draft" in design:
        assert heads.draft_ids is not None
        assert set(text.ids[first + 2 :]) - set(heads.draft_ids.tolist()), "some true tokens are never drafted"


@pytest.mark.parametrize("bits", [4, 16])
def test_states_are_those_that_decoding_computes(bits: int) -> None:
    """Prefilled in one pass or read token by token: of the compiled forward a state has the same bits."""
    base = compiled_base(bits, dtype=torch.bfloat16)
    heads = random_heads(next(iter(DESIGNS.values())), base)
    text = Text(list(range(12)), 4, 0)
    found_TC = read_states(base, heads, text)
    expected_TC = torch.stack([read_states(base, heads, Text(text.ids[: t + 1], 1, 0))[-1] for t in range(12)])
    assert torch.equal(found_TC, expected_TC)
    out = specified(base, bits).base_model(input_ids=torch.tensor([text.ids]))
    assert (found_TC[:, : base.hidden_size].double() - out.last_hidden_state[0]).abs().median() < 0.02


def test_a_prompt_of_one_token_starts_at_its_first_answer(base: Base) -> None:
    heads = random_heads(DESIGNS["hydra"], base)
    text = written(base, [4], 0.0, new_tokens=6)
    # Roots are positions 1.. : the first one has no state to draft from but that of the prompt itself.
    assert len(rank_vectors(base, heads, text, 0.0, MAX_RANK)) == len(text.ids) - 1 - 3


def test_answers_shorter_than_the_heads_reach_count_nothing(base: Base) -> None:
    heads = random_heads(DESIGNS["hydra"], base)
    for new_tokens, num_positions in ((2, 0), (3, 1)):
        text = written(base, [4, 1], 0.0, new_tokens=new_tokens)
        assert rank_vectors(base, heads, text, 0.0, MAX_RANK).shape == (num_positions, 3)


def gained(base: Base, heads: Heads, tree: Tree, prompt: list[int], temperature: float, seed: int) -> int:
    """Tokens that one real step gains after a prompt."""
    seconds = dict.fromkeys(("prefill", "draft", "verify", "accept", "commit"), 0.0)
    drafter = build_drafter("heads", base, heads, tree)
    decoder = Decoder(base, drafter, 1, len(prompt) + 40, seconds)
    decoder.add(0, [Request(prompt, base.tokenizer, Sampling(temperature), seed)])
    return len(decoder.step()[0])


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("design", ["hydra, draft vocabulary", "medusa"])
def test_the_expected_tokens_of_a_tree_are_those_that_real_steps_gain(
    base: Base, design: str, temperature: float
) -> None:
    heads = random_heads(DESIGNS[design], base)
    text = written(base, [4, 1, 7], temperature, new_tokens=20)
    ranks = rank_vectors(base, heads, text, temperature, MAX_RANK)
    paths, probabilities = frequent_paths(ranks, MAX_RANK, 11)
    calibration = Calibration(temperature, 1, paths, probabilities, len(ranks))
    for num_nodes in (2, 5, 12):
        tree = calibration.tree_of(num_nodes)
        steps = [
            gained(base, heads, tree, text.ids[: root + 1], temperature, text.seed) for root in range(2, 2 + len(ranks))
        ]
        assert sum(steps) / len(steps) == pytest.approx(1 + sum(probabilities[: num_nodes - 1]), abs=1e-12)
        assert max(steps) > 1


def all_trees(num_heads: int, max_rank: int, num_paths: int) -> Iterator[tuple[tuple[int, ...], ...]]:
    """Every tree of so many nodes below the root."""
    paths = [path for d in range(1, num_heads + 1) for path in itertools.product(range(max_rank), repeat=d)]
    for chosen in itertools.combinations(paths, num_paths):
        if all(len(path) == 1 or path[:-1] in chosen for path in chosen):
            yield chosen


def mean_accepted(ranks: list[list[int]], paths: Sequence[Sequence[int]]) -> float:
    """Tokens a step beyond the bonus: the walk goes down as long as the path to there is in the tree."""
    known = {tuple(path) for path in paths}
    total = 0
    for vector in ranks:
        depth = 0
        while depth < len(vector) and tuple(vector[: depth + 1]) in known:
            depth += 1
        total += depth
    return total / len(ranks)


@pytest.mark.parametrize("seed", range(6))
def test_no_tree_of_the_same_size_accepts_more(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    num_heads, max_rank = (3, 2) if seed % 2 else (2, 3)
    # Small ranks are likelier, and heads agree with one another: an independence assumption would go wrong here.
    ranks = (torch.rand(40, 1, generator=generator) * torch.rand(40, num_heads, generator=generator) * 5).long()
    ranks = ranks.clamp(max=max_rank)
    for num_paths in range(1, 6):
        paths, probabilities = frequent_paths(ranks, max_rank, num_paths)
        best = max(mean_accepted(ranks.tolist(), tree) for tree in all_trees(num_heads, max_rank, num_paths))
        assert mean_accepted(ranks.tolist(), paths) == pytest.approx(sum(probabilities)) == pytest.approx(best)
        assert Tree.from_paths(paths).num_nodes == len(paths) + 1


def test_paths_are_nested_and_end_where_no_candidate_is_right() -> None:
    ranks = torch.tensor([[0, 0, 4], [0, 0, 4], [0, 1, 0], [4, 0, 0], [2, 4, 1]])
    paths, probabilities = frequent_paths(ranks, max_rank=4, num_paths=100)
    assert paths == [[0], [0, 0], [2], [0, 1], [0, 1, 0]]
    assert probabilities == [0.6, 0.4, 0.2, 0.2, 0.2]
    assert frequent_paths(ranks, 4, 2) == (paths[:2], probabilities[:2])
    for count in range(1, 6):
        Tree.from_paths(paths[:count])
    assert frequent_paths(torch.full((3, 2), 4), 4, 5) == ([], [])
