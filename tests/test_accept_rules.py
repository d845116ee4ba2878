"""The accept rules that draw at random keep the base's distribution, and a test notices one that does not.

All draws have fixed seeds, so a threshold (exceeded by chance with probability 1e-4) is passed or failed for good.
"""

import random
from dataclasses import replace

import pytest
import torch
from chi_square import chi_square
from plain_heads import plain_heads
from random_models import HEAD_DESIGNS, engine_of, five_tokens, random_base, random_heads, random_tree, twin
from torch import Tensor

from euryale.base.base import Base
from euryale.decoding.accept import accept_typical
from euryale.decoding.accept_rejection import Walk, walk_by_rejection
from euryale.decoding.config import AcceptConfig, DrafterConfig, TreeConfig
from euryale.decoding.drafters.interface import Draft
from euryale.decoding.engine import Engine
from euryale.decoding.tree.tree import Shape, Tree, chain
from euryale.errors import UserError
from euryale.heads.config import HeadsConfig

V = 5
PROMPT = [0, 3, 1]
# Two candidates at the root, and below the first of them three, out of five tokens: refusals at every place.
TREE = Tree.from_paths([(0,), (1,), (0, 0), (0, 1), (0, 2)])
NUM = 40_000


def gumbel(*shape: int, seed: int) -> Tensor:
    uniform = torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return -(-uniform.log()).log()


def distributions() -> tuple[Tensor, Tensor]:
    """p and q [V + 1, V]: of the first token (entry V), and of the token after each; unlike one another."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, V + 1, V, generator=generator, dtype=torch.float64) * 1.2
    return logits[0].softmax(-1), logits[1].softmax(-1)


def drawn_pairs(certain: bool = False, eagerness: float = 1.0, claimed: float = 1.0) -> tuple[Tensor, float]:
    """NUM walks at once: counts [V, V] of the first two tokens, and the share of steps that took a candidate.

    eagerness below 1 takes candidates more often than is right; `claimed` is the inverse temperature of the q that the
    draft names, which is not the one it drew from unless 1.
    """
    p, q = distributions()
    N = TREE.num_nodes
    base_noise = gumbel(NUM, 3, V, seed=1)
    draft_noise = gumbel(NUM, 3, V, seed=2)
    first = (q[V].log() + draft_noise[:, 0]).topk(2).indices
    second = (q.log()[first[:, 0]] + draft_noise[:, 1]).topk(3).indices
    tokens_BN = torch.cat([torch.zeros(NUM, 1, dtype=torch.long), first, second], 1)
    assert TREE.parents == (-1, 0, 1, 0, 1, 1), "the chain of first candidates stands in front"
    tokens_BN = tokens_BN[:, [0, 1, 3, 2, 4, 5]]
    after = torch.cat([torch.full((NUM, 1), V), tokens_BN[:, 1:]], 1)  # the token that each node stands for
    chance = torch.rand(NUM, N, generator=torch.Generator().manual_seed(4), dtype=torch.float64) * eagerness
    draft = Draft(
        tokens_BN, Shape.of_tree(TREE), log_q_BNV=None if certain else (claimed * q.log()).log_softmax(-1)[after]
    )
    noise_BNV = base_noise[:, torch.tensor(TREE.depths)]
    walk: Walk = walk_by_rejection(draft, p[after], chance, noise_BNV)
    path = walk.is_accepted_BN
    took = path.sum(-1) - 1
    # The next step draws what this one did not reach.
    one = torch.where(took > 0, tokens_BN.gather(1, path.int().cummax(1).indices[:, -1:])[:, 0], walk.next_B)
    one = torch.where(took == 2, tokens_BN[:, 1], one)
    third = (p.log()[walk.next_B] + gumbel(NUM, V, seed=5)).argmax(-1)
    two = torch.where(took == 0, third, walk.next_B)
    two = torch.where(took == 2, tokens_BN.gather(1, walk.last_B[:, None])[:, 0], two)
    counts = torch.zeros(V, V).index_put_((one, two), torch.ones(NUM), accumulate=True)
    return counts, (took > 0).double().mean().item()


def expected_pairs() -> Tensor:
    p, _ = distributions()
    return p[V][:, None] * p[:V] * NUM


@pytest.mark.parametrize("certain", [False, True], ids=["drawn", "certain"])
def test_rejection_keeps_the_distribution_of_the_base(certain: bool) -> None:
    counts, share = drawn_pairs(certain)
    statistic, threshold = chi_square(counts, expected_pairs())
    assert statistic < threshold
    assert 0.2 < share < 0.95, "the sample takes and refuses"


@pytest.mark.parametrize("wrong", [{"eagerness": 0.9}, {"eagerness": 0.8, "certain": True}, {"claimed": 0.7}])
def test_the_same_test_sees_a_planted_bias(wrong: dict) -> None:
    """Candidates taken a tenth or a fifth too often; a draft that forgot its temperature (1 / 0.7)."""
    statistic, threshold = chi_square(drawn_pairs(**wrong)[0], expected_pairs())
    assert statistic > 1.3 * threshold


def test_a_drafter_that_draws_from_the_base_is_never_refused() -> None:
    p, _ = distributions()
    first = (p[V].log() + gumbel(1000, V, seed=1)).argmax(-1)
    tokens = torch.stack([torch.zeros_like(first), first], 1)
    after = torch.stack([torch.full_like(first, V), first], 1)
    draft = Draft(tokens, Shape.of_tree(chain(1)), log_q_BNV=p.log()[after])
    chance = torch.rand(1000, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert walk_by_rejection(draft, p[after], chance, gumbel(1000, 2, V, seed=3)).last_B.tolist() == [1] * 1000


def pairs_of(engine: Engine, num: int, temperature: float, **how: float) -> Tensor:
    counts = torch.zeros(V, V)
    for start in range(0, num, 500):
        seeds = list(range(start, start + 500))
        for generation in engine.generate([PROMPT] * 500, 2, temperature=temperature, seed=seeds, **how):
            counts[generation.ids[0], generation.ids[1]] += 1
    return counts


def pairs_of_base(base: Base, temperature: float, num: int) -> Tensor:
    prompts = torch.tensor([[*PROMPT, token] for token in range(V)])
    logits = twin(base)(input_ids=prompts, use_cache=False).logits / temperature
    return logits[0, 2].softmax(-1)[:, None] * logits[:, 3].softmax(-1) * num


GAPS = Tree.from_paths([(0,), (2,), (0, 1), (0, 2), (2, 0)])


@pytest.mark.parametrize(
    ("design", "tree"),
    [
        (HEAD_DESIGNS[0], GAPS),
        (HEAD_DESIGNS[8], GAPS),
        (replace(HEAD_DESIGNS[0], vocab_share=0.6), GAPS),
        (HEAD_DESIGNS[0], TreeConfig("dynamic", 7)),
    ],
    ids=["hydra", "medusa", "a draft vocabulary", "dynamic"],
)
def test_the_engine_with_rejection_writes_the_pairs_of_the_base(design: HeadsConfig, tree: Tree | TreeConfig) -> None:
    """4,000 seeds. The ranks of the tree have gaps, which draws one after another cannot have."""
    base, temperature, num = five_tokens(), 1.3, 4_000
    engine = Engine(base, random_heads(design, base, seed=1), "heads", tree, accept="rejection")
    assert_pairs_of_the_base(engine, num, temperature)
    planned = engine.tree()
    assert not isinstance(planned, Tree) or set(planned.ranks) == {0, 1}


def assert_pairs_of_the_base(engine: Engine, num: int, temperature: float) -> None:
    counts = pairs_of(engine, num, temperature)
    expected = pairs_of_base(engine.base, temperature, num)
    statistic, threshold = chi_square(counts, expected)
    assert statistic < threshold
    # Power: a quarter of the second likeliest pair, taken from the likeliest and added to it, would be seen.
    best, second = expected.flatten().topk(2).indices.tolist()
    moved = counts.flatten().clone()
    shift = 0.25 * expected.flatten()[second]
    moved[best], moved[second] = moved[best] - shift, moved[second] + shift
    assert chi_square(moved, expected)[0] > threshold


def test_a_draft_model_with_rejection_writes_the_pairs_of_the_base() -> None:
    small = random_base("llama", V, seed=9, dtype=torch.float64)
    engine = Engine(five_tokens(), None, DrafterConfig("model", depth=2), GAPS, draft_base=small, accept="rejection")
    assert_pairs_of_the_base(engine, 2_000, 1.3)


def test_a_seed_gives_the_same_text_again_and_greedy_is_exact() -> None:
    base = five_tokens()
    exact, rejection, typical = (replace_rule(engine_of(base), name) for name in ("exact", "rejection", "typical"))
    for engine in (rejection, typical):
        assert engine.generate([PROMPT], 30)[0].ids == exact.generate([PROMPT], 30)[0].ids
        alone = [engine.generate([PROMPT], 30, temperature=1.0, seed=seed)[0].ids for seed in range(4)]
        assert [g.ids for g in engine.generate([PROMPT] * 4, 30, temperature=1.0, seed=range(4))] == alone
        assert len({tuple(ids) for ids in alone}) > 1


def replace_rule(engine: Engine, name: str) -> Engine:
    return Engine(engine.base, engine.heads, "heads", engine.tree(), accept=name)


def typical_by_hand(tree: Tree, tokens: list[int], p_NV: Tensor, threshold: float, alpha: float) -> list[int]:
    """Every path, token by token; the longest whose tokens all pass, then the likeliest."""
    best: tuple[int, float, list[int]] = (0, 0.0, [0])
    for leaf in range(tree.num_nodes):
        path = [leaf]
        while tree.parents[path[0]] >= 0:
            path.insert(0, tree.parents[path[0]])
        log_p = 0.0
        for parent, node in zip(path, path[1:], strict=False):
            p_V = p_NV[parent]
            entropy = -sum(x * x.log() for x in p_V if x > 0)
            if p_V[tokens[node]] <= min(threshold, alpha * torch.exp(-torch.as_tensor(entropy))):
                break
            log_p += p_V[tokens[node]].log().item()
        else:
            best = max(best, (len(path) - 1, log_p, path), key=lambda found: found[:2] if found[0] else (0, 0.0))
    return best[2]


def test_typical_takes_the_longest_path_of_likely_tokens() -> None:
    rng = random.Random(0)
    generator = torch.Generator().manual_seed(0)
    lengths = set()
    for trial in range(60):
        tree = random_tree(rng, 4, V, rng.randint(2, 20))
        p = (torch.randn(2, tree.num_nodes, V, generator=generator, dtype=torch.float64) * 2).softmax(-1)
        if trial % 3 == 0:  # filtered tokens have p = 0
            p = torch.where(p < 0.05, 0.0, p)
            p = p / p.sum(-1, keepdim=True)
        tokens = [[rng.randrange(V) for _ in range(tree.num_nodes)] for _ in range(2)]
        threshold, alpha = rng.choice([(0.09, 0.3), (0.3, 0.6)])
        is_accepted = accept_typical(Draft(torch.tensor(tokens), Shape.of_tree(tree)), p.log(), threshold, alpha)
        for row in range(2):
            path = [node for node, flag in enumerate(is_accepted[row].tolist()) if flag]
            assert path == typical_by_hand(tree, tokens[row], p[row], threshold, alpha)
            lengths.add(len(path))
    assert {1, 2, 3} <= lengths


def test_typical_is_lossy_as_its_label_says_and_the_bias_is_the_rule_s_own() -> None:
    """One candidate: where p of it passes the threshold it is always written, elsewhere the token is the base's."""
    num_taken = 0
    for seed in range(6):
        base = random_base("llama", V, seed=seed, dtype=torch.float64)
        engine = Engine(base, random_heads(HEAD_DESIGNS[0], base, seed), "heads", chain(1), accept="typical")
        p_V = twin(base)(input_ids=torch.tensor([PROMPT]), use_cache=False).logits[0, -1].softmax(-1)
        generations = engine.generate([PROMPT] * 600, 1, temperature=1.0, seed=range(600))
        assert not any(generation.is_lossless for generation in generations)
        counts = torch.bincount(torch.tensor([g.ids[0] for g in generations]), minlength=V)
        statistic, threshold = chi_square(counts, p_V * 600)
        if counts.max() == 600 and p_V.max() < 0.99:
            token = int(counts.argmax())
            assert p_V[token] > min(0.09, 0.3 * (p_V * p_V.log()).sum().exp())
            assert statistic > threshold, "the loss is seen"
            num_taken += 1
        else:
            assert statistic < threshold
    assert 0 < num_taken < 6


def test_rules_that_cannot_be_are_refused() -> None:
    base = five_tokens()
    for rule, message in (
        ("nucleus", "accept must be one of exact, rejection, typical; got nucleus"),
        (AcceptConfig("rejection", coupled=True), "accept.coupled=true with accept=rejection"),
        (AcceptConfig("typical", threshold=0.0), "accept.threshold must be above 0 and at most 1; got 0.0"),
        (AcceptConfig("typical", alpha=-1.0), "accept.alpha must be positive; got -1.0"),
    ):
        with pytest.raises(UserError, match=message):
            Engine(base, drafter="none", accept=rule)


def test_plain_ranking_writes_the_same_text_in_more_steps() -> None:
    base = random_base("qwen2", 13, seed=4, dtype=torch.float64)
    heads = random_heads(plain_heads("hydra", num_heads=3), base)
    with torch.no_grad():  # heads as good as the base's last words: a coupled guess then often is the draw
        for parameter in heads.parameters():
            parameter.mul_(0.05)
    steps = {}
    for coupled in (True, False):
        engine = Engine(base, heads, "heads", chain(3), accept=replace(AcceptConfig(), coupled=coupled))
        answers = engine.generate([PROMPT] * 20, 30, temperature=1.5, seed=range(20))
        steps[coupled] = sum(answer.num_steps for answer in answers)
        plain = Engine(base, drafter="none").generate([PROMPT] * 20, 30, temperature=1.5, seed=range(20))
        assert [answer.ids for answer in answers] == [answer.ids for answer in plain]
    assert steps[True] < steps[False]
