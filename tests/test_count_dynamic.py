"""What is counted of dynamic trees along a known text are the steps that decoding takes with them."""

import pytest
import torch
from calibration_cases import DESIGNS, MAX_RANK, PROMPTS, written
from plain_heads import plain_heads
from random_models import random_base, random_heads

from euryale.base.base import Base
from euryale.decoding.config import TreeConfig
from euryale.decoding.engine import Engine
from euryale.decoding.tree.calibration import Calibration
from euryale.decoding.tree.tree import DynamicTree
from euryale.evaluation import count_dynamic as module
from euryale.evaluation.count_dynamic import Known, count_dynamic, dynamic_sizes
from euryale.evaluation.rank_vectors import frequent_paths, positions, rank_vectors, read_states

CASES = {
    "hydra, draft vocabulary": DESIGNS["hydra, draft vocabulary"],
    "hydra, induction": plain_heads("hydra", num_heads=3, vocab_share=1.0, induction=3, features="several"),
    "medusa": DESIGNS["medusa"],
    "eagle": plain_heads("eagle", num_heads=3, vocab_share=1.0),
}


@pytest.fixture(scope="module")
def base() -> Base:
    return random_base(vocab_size=13, seed=11, dtype=torch.float64)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("design", CASES)
def test_counted_steps_are_those_that_decoding_takes(
    base: Base, design: str, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_POSITIONS", 7)  # several at a time, fewer the last time
    heads = random_heads(CASES[design], base)
    texts = [written(base, o.ids, temperature, seed, new_tokens=40) for seed, o in enumerate(PROMPTS)]
    ranks = torch.cat([rank_vectors(base, heads, text, temperature, MAX_RANK) for text in texts])
    usual = Calibration(temperature, 1, *frequent_paths(ranks, MAX_RANK, 8), len(ranks))
    known = [Known(text, read_states(base, heads, text), ranks, usual) for text in texts]
    sizes = [DynamicTree(12, 3), DynamicTree(12, 2), DynamicTree(20, 3), DynamicTree(5, 2)]
    tau = count_dynamic(base, heads, known, sizes, temperature)
    assert len(set(tau.values())) > 1, "the case tells sizes apart"
    for size in sizes:
        engine = Engine(base, heads, tree=TreeConfig("dynamic", size.num_nodes, size.max_depth), calibrations=[usual])
        gained = []
        for text in texts:
            [answer] = engine.generate([text.ids[: text.num_prompt]], 40, temperature=temperature, seed=text.seed)
            position = 0
            for tokens in answer.accepted:  # as long as what follows is known
                if position < len(positions(text, 3)):
                    gained.append(tokens)
                position += tokens
        # Small trees ask fewer candidates of a parent, which for these random heads can leave another one out.
        assert tau[size] == pytest.approx(sum(gained) / len(gained), abs=0.05 if size.num_nodes < 11 else 1e-9), size


def test_the_sizes_have_two_levels_at_least_and_no_more_than_their_nodes_fill() -> None:
    assert dynamic_sizes([1, 2], 4) == []
    assert dynamic_sizes([3, 4, 8], 3) == [
        DynamicTree(3, 2), DynamicTree(4, 2), DynamicTree(4, 3), DynamicTree(8, 2), DynamicTree(8, 3)
    ]  # fmt: skip
    assert dynamic_sizes([8], 1) == [], "flat ones are fixed ones"
