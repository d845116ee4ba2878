"""Trees that are drafted in one call of C++ are those that the heads give level by level."""

import platform
import random
from collections.abc import Iterator

import pytest
import torch
from compilers import needs_compiler
from plain_heads import plain_heads
from random_models import HEAD_DESIGNS, random_base, random_heads, random_tree
from torch import Tensor

from euryale.base.base import Base
from euryale.base.compiled_llama import CompiledLlama
from euryale.decoding.drafters import compiled_heads
from euryale.decoding.drafters.head_matrices import bytes_of_a_number
from euryale.decoding.drafters.heads import HeadsDrafter
from euryale.decoding.drafters.interface import Draft, DraftInput
from euryale.decoding.engine import Engine
from euryale.decoding.tree.calibration import Calibration
from euryale.decoding.tree.tree import DynamicTree, Tree, chain
from euryale.heads.config import HeadsConfig
from euryale.heads.heads import Heads
from euryale.kernels.cpu.compile import library_for, why_one_thread

pytestmark = needs_compiler
V = 67  # four vectors of scores, and some


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    if request.param > 1 and (reason := why_one_thread()):  # such a library is not taken for two
        pytest.skip(reason)
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def small_heads(design: HeadsConfig, base: Base, seed: int = 0) -> Heads:
    """With logits of size 1: a dynamic tree takes all chances below a least one for the same."""
    heads = random_heads(design, base, seed)
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter.mul_(0.5)
    return heads


def drafter_of(base: Base, heads: Heads, tree: Tree | DynamicTree, num_rows: int) -> HeadsDrafter:
    calibration = Calibration(0.0, 5, [[0], [0, 0], [1]], [0.6, 0.5, 0.2], 100)
    drafter = HeadsDrafter(base, heads, tree, calibration if num_rows % 2 else None).begin(num_rows, 256)
    for row in range(num_rows):
        drafter.add(row)
    return drafter


def random_input(base: Base, heads: Heads, texts: list[list[int]], temperature: float, seed: int) -> DraftInput:
    generator, B = torch.Generator().manual_seed(seed), len(texts)
    noise_BPV = -(-torch.rand(B, 6, base.vocab_size, generator=generator).log()).log()
    states_BC = torch.randn(B, heads.num_states * base.hidden_size, generator=generator).to(base.dtype)
    roots_B = torch.tensor([text[-1] for text in texts])
    temperatures = torch.rand(B, 1, 1, generator=generator) + 0.5 if temperature else 1.0
    return DraftInput(states_BC, roots_B, noise_BPV if temperature else None, temperatures, texts)


def both(drafter: HeadsDrafter, known: DraftInput) -> tuple[Draft, Draft]:
    """In one call, and level by level."""
    compiled = drafter._compiled
    assert compiled is not None and compiled.takes(known)
    found = drafter.propose(known)
    drafter._compiled = None
    expected = drafter.propose(known)
    drafter._compiled = compiled
    return found, expected


def assert_same(found: Draft, expected: Draft) -> None:
    assert torch.equal(found.tokens_BN, expected.tokens_BN)
    assert all(map(torch.equal, found.shape, expected.shape))
    assert [part.dtype for part in found.shape] == [part.dtype for part in expected.shape]


@pytest.mark.parametrize("number", range(len(HEAD_DESIGNS)))
def test_every_design_drafts_what_its_levels_say(number: int) -> None:
    """Narrow bases in float32 have heads in float32: random scores are never so close that rounding decides."""
    rng, design = random.Random(number), HEAD_DESIGNS[number]
    base = random_base(("llama", "qwen3")[number % 2], V, seed=number)
    heads = small_heads(design, base, number)
    trees = [random_tree(rng, 4, 7, 25), random_tree(rng, 4, 3, 9), DynamicTree(20, 4), DynamicTree(6, 3), chain(1)]
    for seed, tree in enumerate(trees):
        texts = [[rng.randrange(4) for _ in range(rng.randint(1, 90))] for _ in range(rng.randint(1, 3))]
        drafter = drafter_of(base, heads, tree, len(texts))
        for temperature in (0.0, 0.8):
            assert_same(*both(drafter, random_input(base, heads, texts, temperature, seed)))


@pytest.mark.parametrize("kind", ["hydra", "medusa"])
@pytest.mark.parametrize("longest", [1, 2, 3])
def test_rows_that_grow_come_and_go_find_what_followed_earlier(longest: int, kind: str) -> None:
    rng, base = random.Random(longest), random_base("llama", V, seed=longest)
    heads = small_heads(plain_heads(kind, induction=longest), base, longest)
    drafter = drafter_of(base, heads, random_tree(rng, 4, 5, 16), 3)
    texts = [[rng.randrange(3) for _ in range(length)] for length in (1, 2, 150)]
    for step in range(12):
        if step == 4:
            drafter.swap_remove(0)
            texts[0] = texts.pop()
        if step == 7:
            drafter.add(2)
            texts.append([rng.randrange(3) for _ in range(40)])
        assert_same(*both(drafter, random_input(base, heads, texts, 0.0, step)))
        for text in texts:
            text += [rng.randrange(3) for _ in range(rng.randint(1, 4))]


TARGETS = {"the plainest": ("-O1", "-march=x86-64") if platform.machine() in ("x86_64", "AMD64") else ("-O1",)}
if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):
    TARGETS["AVX2"] = ("-O1", "-march=haswell")


@pytest.mark.parametrize("target", TARGETS)
def test_other_instructions_draft_the_same(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    library = library_for(TARGETS[target])
    monkeypatch.setattr(compiled_heads, "load_library", lambda: library)
    rng, base = random.Random(5), random_base("llama", V, seed=5)
    heads = small_heads(plain_heads("hydra", induction=3, vocab_share=0.8, output="lowrank", output_rank=3), base)
    texts = [[rng.randrange(3) for _ in range(70)] for _ in range(2)]
    for tree in (random_tree(rng, 4, 7, 20), DynamicTree(20, 4)):
        assert_same(*both(drafter_of(base, heads, tree, 2), random_input(base, heads, texts, 0.8, 1)))


def test_a_large_vocabulary_keeps_the_correction_apart(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("euryale.decoding.drafters.head_matrices._TAKES_CORRECTION_IN", 0)
    base, rng = random_base("llama", V), random.Random(1)
    heads = small_heads(plain_heads("hydra", output="lowrank", output_rank=3, vocab_share=0.6), base)
    for seed in range(4):
        known = random_input(base, heads, [[3], [4]], 0.8, seed)
        assert_same(*both(drafter_of(base, heads, random_tree(rng, 4, 5, 12), 2), known))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("design", [HEAD_DESIGNS[0], HEAD_DESIGNS[-1]], ids=["hydra", "medusa"])
def test_few_bits_change_scores_by_rounding_alone(
    design: HeadsConfig, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4 where the base is in 4 bits, and both are wide; else 8."""
    monkeypatch.setattr("euryale.decoding.drafters.head_matrices._LARGE", 32)
    base = random_base("llama", V, seed=2, dtype=torch.bfloat16, hidden_size=32, intermediate_size=32)
    base._forward = CompiledLlama(base.model, 16)
    base.quantization = "int4" if bits == 4 else "none"
    heads = small_heads(design, base, 3)
    for seed in range(4):
        drafter = drafter_of(base, heads, Tree.from_paths([(rank,) for rank in range(12)]), 3)
        assert drafter._matrices.bits == bits
        assert bytes_of_a_number(base) == bits / 8 + 4 / 32  # two numbers of 16 bits for 32
        known = random_input(base, heads, [[seed, 5, seed], [1, 2], [2]], 0.0, seed)
        entry = drafter._matrices.enter(known, 1)
        search, ends_BP = drafter._search(known)
        found_BP = None if search is None or ends_BP is None else search.followers(ends_BP)
        scores_BV = drafter._matrices.logits(0, entry, None, found_BP)[:, 0].float()
        expected_BK = scores_BV.topk(12).values
        tokens_BK = drafter.propose(known).tokens_BN[:, 1:]
        places_BK = tokens_BK if heads.draft_ids is None else torch.searchsorted(heads.draft_ids, tokens_BK)
        # The levels round each answer to bfloat16, the call does not: 2^-8 of scores of some units, a few times over.
        room = 0.03 * float(scores_BV.abs().max())
        assert (scores_BV.gather(1, places_BK) - expected_BK).abs().max() < room


@pytest.mark.parametrize("tree", [DynamicTree(20, 4), Tree.from_paths([(0,), (1,), (4,), (0, 0), (0, 3), (1, 2)])])
@pytest.mark.parametrize("broken", [float("nan"), float("inf"), float("-inf")])
def test_heads_that_are_not_finite_draft_different_siblings(tree: Tree | DynamicTree, broken: float) -> None:
    base = random_base("llama", V)
    heads = random_heads(plain_heads("hydra", induction=1), base)
    with torch.no_grad():
        heads.blocks(0)[0].hidden_in.weight.fill_(broken)
    for part in (slice(None), slice(1)):  # all of a state, and one number: only some scores are lost
        known = random_input(base, heads, [[1, 2, 1], [3]], 0.8, 1)
        known.hidden_BD[:, part] = broken
        draft = drafter_of(base, heads, tree, 2).propose(known)
        assert ((draft.tokens_BN >= 0) & (draft.tokens_BN < V)).all()
        parents_BN = draft.shape.parents_RN.expand(2, -1)
        for tokens, parents in zip(draft.tokens_BN[:, 1:].tolist(), parents_BN[:, 1:].tolist(), strict=True):
            assert all(0 <= parent <= node for node, parent in enumerate(parents))
            assert len(set(zip(tokens, parents, strict=True))) == len(tokens)


def test_a_vocabulary_smaller_than_the_candidates_is_filled_once() -> None:
    base = random_base("llama", 5)
    heads = small_heads(plain_heads("hydra"), base)
    for tree in (DynamicTree(50, 2), Tree.from_paths([(rank,) for rank in range(5)])):
        assert_same(*both(drafter_of(base, heads, tree, 1), random_input(base, heads, [[1]], 0.8, 1)))


def test_what_it_does_not_take_is_asked_level_by_level() -> None:
    base = random_base("llama", V)
    heads = small_heads(plain_heads("hydra"), base)
    drafter = drafter_of(base, heads, chain(2), 1)
    known = random_input(base, heads, [[1]], 0.8, 1)
    asked: list[bool] = []

    def process(scores_BPV: Tensor, ids: Tensor | None, is_first: bool) -> Tensor:
        asked.append(is_first)
        return scores_BPV

    drafter.propose(known._replace(process=process))
    assert asked == [True, False]
    assert drafter.propose(known._replace(draws=True)).log_q_BNV is not None
    plain = random_base("llama", V, dtype=torch.float64)
    assert drafter_of(plain, small_heads(plain_heads("hydra"), plain), chain(2), 1)._compiled is None
    plain = Base(base.model, base.tokenizer, base.path, base.fingerprint, forward="plain")
    assert drafter_of(plain, heads, chain(2), 1)._compiled is None
    assert drafter_of(base, heads, Tree.from_paths([(V,)]), 1)._compiled is None  # torch says what is wrong
    base.model.lm_head.double()  # states and embeddings in different numbers
    assert drafter_of(base, heads, chain(2), 1)._compiled is None


def test_embeddings_that_lie_column_by_column_are_read_as_they_are() -> None:
    base = random_base("llama", V)
    embedding = base.model.get_input_embeddings()
    embedding.weight = torch.nn.Parameter(embedding.weight.T.contiguous().T, requires_grad=False)
    heads = small_heads(plain_heads("hydra"), base)
    assert_same(*both(drafter_of(base, heads, DynamicTree(20, 4), 1), random_input(base, heads, [[1]], 0.8, 1)))


def test_a_base_that_is_moved_to_other_numbers_is_drafted_for_still() -> None:
    base = random_base("llama", V)
    engine = Engine(base, small_heads(plain_heads("hydra"), base), tree=chain(2))
    engine.generate([[1, 2]], 4)
    base.model.bfloat16()
    [found], [expected] = engine.generate([[1, 2]], 12), Engine(base, drafter="none").generate([[1, 2]], 12)
    assert found.ids == expected.ids
