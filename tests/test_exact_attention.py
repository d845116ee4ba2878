"""A token's states are bit-equal whatever pass computes them: alone, in a tree or batch, in a chunk of a prompt."""

import random
from collections.abc import Callable

import pytest
import torch
from random_models import FAMILIES, random_base
from torch import Tensor

from euryale.base.attention_plan import Blocks, Heads
from euryale.base.attention_planner import Planner
from euryale.base.attention_proof import proven_blocks
from euryale.base.base import Base
from euryale.base.exact_attention import exact_attention
from euryale.base.fast_llama import FastLlama
from euryale.base.tree_attention import tree_attention
from euryale.decoding.kv_cache import KVCache, TreeMask
from euryale.kernels.packed_linear import multiplies_bfloat16

pytestmark = pytest.mark.usefixtures("no_compiled_forward")
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
V = 29


def exact_forward(base: Base) -> FastLlama:
    forward = base.forward()
    assert isinstance(forward, FastLlama)
    forward.reserve(512)
    if base.dtype == torch.bfloat16 and not multiplies_bfloat16():
        pytest.skip("this processor has no products of bfloat16, and nothing is promised there")
    assert forward.is_exact, "every processor that the tests run on has row counts that agree"
    return forward


def random_ancestors(rng: random.Random, num_nodes: int, max_depth: int, chain: int = 0) -> Tensor:
    """True where a node sees a node [1, N, N]; the first nodes are a chain of that depth."""
    paths = [list(range(depth + 1)) for depth in range(chain + 1)]
    while len(paths) < num_nodes:
        parent = rng.choice(paths)
        if len(parent) <= max_depth:
            paths.append([*parent, len(paths)])
    seen_NN = torch.zeros(num_nodes, num_nodes, dtype=torch.bool)
    for node, path in enumerate(paths):
        seen_NN[node, path] = True
    return seen_NN[None]


def read(forward: FastLlama, base: Base, cache: KVCache, ids_BN: Tensor, seen_1NN: Tensor) -> Tensor:
    """One pass, as the decoder makes it."""
    N = ids_BN.shape[1]
    cache.begin(N)
    mask = TreeMask(N, cache.num_slots, base.dtype, "cpu").of(cache, seen_1NN)
    positions_BN = torch.tensor(cache.lengths)[:, None] + seen_1NN.sum(-1) - 1
    return forward.hidden(ids_BN, positions_BN, cache, mask)


def read_prompt(forward: FastLlama, base: Base, cache: KVCache, row: int, ids: Tensor, chunk: int) -> None:
    part = cache.part(row, 1)
    for at in range(0, len(ids), chunk):
        ids_1T = ids[None, at : at + chunk]
        T = ids_1T.shape[1]
        read(forward, base, part, ids_1T, torch.ones(1, T, T, dtype=torch.bool).tril())
        part.commit([list(range(T))])


# Rows, nodes, committed lengths, tokens of a chunk of the prompt, depth of a chain that the tree begins with.
CASES = [
    (1, 2, [5], 1, 0),
    (1, 16, [47], 7, 0),
    (1, 40, [131], 64, 0),
    (3, 7, [10, 200, 48], 30, 3),
    (5, 6, [3, 60, 61, 95, 33], 100, 0),
    (2, 30, [62, 20], 50, 20),
    (2, 16, [380, 200], 512, 0),  # MKL adds more than 384 or 192 keys in parts
]


@torch.inference_mode()
@pytest.mark.parametrize("case", range(len(CASES)))
@pytest.mark.parametrize("family", FAMILIES)
@DTYPES
def test_a_node_of_a_tree_has_the_bits_of_plain_decoding(family: str, case: int, dtype: torch.dtype) -> None:
    B, N, lengths, chunk, chain = CASES[case]
    rng = random.Random(f"{family}{case}")
    generator = torch.Generator().manual_seed(case)
    base = random_base(family, V, seed=case, dtype=dtype, max_position_embeddings=512)
    forward, config = exact_forward(base), base.model.config
    cache = KVCache(config, B, max(lengths) + N, dtype, torch.device("cpu"))
    for row, length in enumerate(lengths):
        read_prompt(forward, base, cache, row, torch.randint(V, (length,), generator=generator), chunk)
    cache.lengths = list(lengths)
    seen_1NN = random_ancestors(rng, N, max(chain, 8), chain)
    ids_BN = torch.randint(V, (B, N), generator=generator)
    before = cache.kv.clone()
    tree_BND = read(forward, base, cache, ids_BN, seen_1NN)
    logits_BNV = forward.logits(tree_BND)
    for row in range(B):
        node = rng.randrange(chain, N)
        alone = KVCache(config, 1, max(lengths) + N, dtype, torch.device("cpu"))
        alone.kv.copy_(before[:, :, row : row + 1])
        alone.lengths = [lengths[row]]
        for step in seen_1NN[0, node].nonzero()[:, 0].tolist():
            slot = alone.lengths[0]
            one_11D = read(forward, base, alone, ids_BN[row : row + 1, step : step + 1], seen_1NN[:, :1, :1])
            alone.commit([[0]])
            assert torch.equal(one_11D[0, 0], tree_BND[row, step])
            assert torch.equal(forward.logits(one_11D)[0, 0], logits_BNV[row, step])
            assert torch.equal(alone.kv[:, :, 0, :, slot], cache.kv[:, :, row, :, lengths[row] + step])


@torch.inference_mode()
@DTYPES
def test_a_prompt_leaves_the_same_keys_and_values_however_it_is_cut(dtype: torch.dtype) -> None:
    base = random_base("llama", V, seed=1, dtype=dtype, max_position_embeddings=512)
    forward = exact_forward(base)
    ids = torch.randint(V, (150,), generator=torch.Generator().manual_seed(1))
    found = []
    for chunk in (1, 3, 64, 150):
        cache = KVCache(base.model.config, 1, 160, dtype, torch.device("cpu"))
        read_prompt(forward, base, cache, 0, ids, chunk)
        found.append(cache.kv[..., :150, :])
    assert all(torch.equal(kv, found[0]) for kv in found)


def attend(query_BNHE: Tensor, keys: Tensor, values: Tensor, seen_RNN: Tensor | None, lengths: list[int]) -> Tensor:
    """exact_attention of one pass: [B, N, H, E]. Keys and values [B, G, S, E] have any numbers after the nodes."""
    B, N, H, E = query_BNHE.shape
    G = keys.shape[1]
    planner = Planner(Heads(G, H // G, E, E**-0.5), proven_blocks(E, torch.get_num_threads()), query_BNHE.dtype)
    plan = planner.plan(seen_RNN, lengths, N, B * N)
    return exact_attention(plan, query_BNHE, keys[:, :, : plan.width], values[:, :, : plan.width]).view(B, N, H, E)


def random_states(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (4, 1)], ids=["alone", "grouped", "shared"])
@pytest.mark.parametrize(("num_nodes", "lengths"), [(16, [62, 21]), (30, [120]), (70, [200]), (1, [7, 90])])
@DTYPES
def test_exact_attention_is_attention(
    heads: tuple[int, int], num_nodes: int, lengths: list[int], dtype: torch.dtype
) -> None:
    """Against a plain softmax in float64; the bound is that of float32 sums, or of an answer rounded to bfloat16."""
    H, G = heads
    B, N, E, S = len(lengths), num_nodes, 16, 304
    query = random_states(0, B, N, H, E).to(dtype)
    keys, values = random_states(1, B, G, S, E), random_states(2, B, G, S, E)
    seen_1NN = random_ancestors(random.Random(0), N, 6)
    found = attend(query, keys, values, seen_1NN if N > 1 else None, lengths)
    assert found.dtype == dtype
    for row, length in enumerate(lengths):
        for node in range(N):
            slots = [*range(length), *(length + seen_1NN[0, node].nonzero()[:, 0]).tolist()]
            for head in range(H):
                own = keys[row, head * G // H, slots].double(), values[row, head * G // H, slots].double()
                share = (own[0] @ query[row, node, head].double() * E**-0.5).softmax(-1)
                expected = (share @ own[1]).to(torch.float32)
                rtol = 1e-5 if dtype == torch.float32 else 0.01
                torch.testing.assert_close(found[row, node, head].float(), expected, rtol=rtol, atol=rtol)


EDGES = [n + d for n in (0, 16, 32, 112, 128, 192, 256, 384, 512, 640, 1008) for d in (-7, -3, -1, 0, 1) if n + d >= 0]


@pytest.mark.parametrize("head_dim", [16, 64])
def test_nodes_have_the_bits_of_plain_decoding_around_every_edge_of_a_block(head_dim: int) -> None:
    """Key counts around the ends of blocks, where the keys of one path are added in two products."""
    G, R, N = 2, 3, 12
    keys, values = random_states(1, 1, G, 1040, head_dim), random_states(2, 1, G, 1040, head_dim)
    query = random_states(3, 1, N, G * R, head_dim)
    for length in EDGES:
        seen_1NN = random_ancestors(random.Random(length), N, 8, chain=3)
        tree = attend(query, keys, values, seen_1NN, [length])
        for node in range(N):
            slots = torch.cat([torch.arange(length), length + seen_1NN[0, node].nonzero()[:, 0]])
            alone_keys, alone_values = keys.clone(), values.clone()
            alone_keys[:, :, : len(slots)], alone_values[:, :, : len(slots)] = keys[:, :, slots], values[:, :, slots]
            alone = attend(query[:, node : node + 1], alone_keys, alone_values, None, [len(slots) - 1])
            assert torch.equal(alone[0, 0], tree[0, node]), (length, node)


def test_rows_of_a_batch_have_the_bits_of_each_alone() -> None:
    """Equal lengths, which share a piece, and different ones; one query a row, a chain and trees of their own."""
    G, R, E = 2, 3, 16
    for lengths in ([130, 130, 130], [3, 260, 127, 15], [500, 40]):
        B = len(lengths)
        keys, values = random_states(1, B, G, 560, E), random_states(2, B, G, 560, E)
        trees_BNN = torch.cat([random_ancestors(random.Random(row), 10, 6) for row in range(B)])
        chain_1NN = torch.ones(1, 10, 10, dtype=torch.bool).tril()
        for seen_RNN in (None, trees_BNN[:1], trees_BNN, chain_1NN):
            query = random_states(3, B, 1 if seen_RNN is None else 10, G * R, E)
            together = attend(query, keys, values, seen_RNN, lengths)
            for row in range(B):
                seen = None if seen_RNN is None else seen_RNN[row % len(seen_RNN)][None]
                part = slice(row, row + 1)
                alone = attend(query[part], keys[part], values[part], seen, lengths[part])
                assert torch.equal(alone[0], together[row])


def test_a_mask_that_hides_committed_slots_is_followed() -> None:
    """As later levels of a draft have it: they do not see all nodes of the levels above."""
    G, R, E, B, N, S = 2, 2, 16, 2, 3, 21
    query, keys, values = random_states(0, B, N, G * R, E), random_states(1, B, G, 32, E), random_states(2, B, G, 32, E)
    is_seen = random_states(3, B, 1, N, S) > 0
    mask = torch.zeros(B, 1, N, S).masked_fill(~is_seen, torch.finfo(torch.float32).min)
    plan = Planner(Heads(G, R, E, E**-0.5), Blocks(4, 128, 192), torch.float32).masked(mask, B, B * N)
    found = exact_attention(plan, query, keys, values).view(B, N, G * R, E)
    expected, _ = tree_attention(
        torch.nn.Identity(), query.transpose(1, 2), keys[:, :, :S], values[:, :, :S], mask, E**-0.5
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_products_that_add_in_another_order_get_other_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel of its own for few rows, or for many keys, is found; where no order is kept, nothing is promised."""
    true_bmm = torch.bmm

    def blocks_with(backwards: Callable[[Tensor], bool]) -> Blocks | None:
        def bmm(weights: Tensor, values: Tensor) -> Tensor:
            return true_bmm(weights.flip(-1), values.flip(-2)) if backwards(weights) else true_bmm(weights, values)

        monkeypatch.setattr(torch, "bmm", bmm)
        return proven_blocks.__wrapped__(16, 1)

    unit, keys, most = blocks_with(lambda weights: False)
    assert blocks_with(lambda weights: weights.shape[1] < 16) == (16, keys, most)
    assert blocks_with(lambda weights: weights.shape[2] > 100) == (unit, 32, 64)
    assert blocks_with(lambda weights: weights.shape[1] % 64 == 0) is None
