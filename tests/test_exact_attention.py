"""A token's states are bit-equal whatever pass computes them: alone, in a tree or batch, in a chunk of a prompt."""

import random

import pytest
import torch
from random_models import FAMILIES, random_base
from torch import Tensor

from euryale.base.base import Base
from euryale.base.exact_attention import exact_attention
from euryale.base.fast_llama import FastLlama
from euryale.decoding.kv_cache import KVCache, TreeMask

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
V = 29


def exact_forward(base: Base) -> FastLlama:
    forward = base.forward()
    assert isinstance(forward, FastLlama)
    forward.reserve(512)
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
    cache = KVCache(config, B, max(lengths) + N, forward.cache_dtype, torch.device("cpu"))
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
        alone = KVCache(config, 1, max(lengths) + N, forward.cache_dtype, torch.device("cpu"))
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
        cache = KVCache(base.model.config, 1, 160, forward.cache_dtype, torch.device("cpu"))
        read_prompt(forward, base, cache, 0, ids, chunk)
        found.append(cache.kv[..., :150, :])
    assert all(torch.equal(kv, found[0]) for kv in found)


@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (4, 1)], ids=["alone", "grouped", "shared"])
@pytest.mark.parametrize("depth", [6, 20])
@DTYPES
def test_exact_attention_is_attention(heads: tuple[int, int], depth: int, dtype: torch.dtype) -> None:
    """Against a plain softmax in float64; bfloat16 rounds each part once before they are merged."""
    H, G = heads
    B, N, E, lengths = 2, depth + 10, 16, [62, 21]
    generator = torch.Generator().manual_seed(0)
    query, keys, values = (
        torch.randn(B, *shape, E, generator=generator).to(dtype) for shape in ((N, H), (G, 101), (G, 101))
    )
    seen_1NN = random_ancestors(random.Random(0), N, depth, depth)
    order = key_order(seen_1NN, lengths, torch.Size((B, N)), 4, query)
    assert len({group.num_keys for group in order.groups}) > 1
    assert any(group.slots_X is not None for group in order.groups) == (depth > MARGIN)
    found = exact_attention(query, keys, values, order, E**-0.5).view(B, N, H, E)
    for row, length in enumerate(lengths):
        for node in range(N):
            slots = [*range(length), *(length + seen_1NN[0, node].nonzero()[:, 0]).tolist()]
            for head in range(H):
                own = keys[row, head * G // H, slots].double(), values[row, head * G // H, slots].double()
                share = (own[0] @ query[row, node, head].double() * E**-0.5).softmax(-1)
                expected = (share @ own[1]).to(torch.float32)
                rtol = 1e-5 if dtype == torch.float32 else 0.02
                torch.testing.assert_close(found[row, node, head].float(), expected, rtol=rtol, atol=rtol)


def test_rows_that_would_depend_on_each_other_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flash attention that adds in another order for few rows gets another unit, and one that always does none."""
    from euryale.base import exact_attention as module

    true_flash = module._flash

    def with_other_kernels_below(least: int) -> int | None:
        def flash(query: Tensor, *more: object, **settings: object) -> tuple[Tensor, Tensor]:
            out, sums = true_flash(query, *more, **settings)
            return out, sums * (1 + 1e-6) if query.shape[2] < least else sums

        monkeypatch.setattr(module, "_flash", flash)
        return attention_rows.__wrapped__(1, 16, torch.float32, 1)

    assert with_other_kernels_below(16) == 16
    assert with_other_kernels_below(32) == 32
    assert with_other_kernels_below(64) is None
