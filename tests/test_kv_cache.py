"""A tree pass equals causal passes over its paths, and the cache keeps exactly what was accepted.

The reference is transformers' own: eager attention, its causal mask, its dynamic cache.
"""

import random

import pytest
import torch
from random_models import (
    FAMILIES,
    HEAD_DESIGNS,
    random_base,
    random_heads,
    random_prompts,
    random_tree,
    twin,
)
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from euryale.base.base import Base
from euryale.base.fast_llama import FastLlama
from euryale.base.forward import Forward, PlainForward
from euryale.decoding.decoder import Decoder
from euryale.decoding.drafters.heads import HeadsDrafter
from euryale.decoding.kv_cache import KVCache, TreeMask
from euryale.decoding.request import Request
from euryale.decoding.sampling import Sampling
from euryale.decoding.tree.tree import ROOT_ONLY, Tree, chain, medusa63

PARTS = ("prefill", "draft", "verify", "accept", "commit")


def assert_close(found: Tensor, expected: Tensor) -> None:
    """To 1e-4, of float64 bases: on no processor does the order of sums show in ten digits. What is left are norms and
    rotations, float32 in any dtype: 6e-6 here after two layers. A slip of a slot or a position moves states by tenths.
    """
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def causal_pass(model: PreTrainedModel, rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Hidden states [B, T, D] and the cache [L, 2, B, H, T, D] of plain transformers over rows of equal length."""
    cache = DynamicCache()
    with torch.inference_mode():
        out = model.base_model(input_ids=torch.tensor(rows), past_key_values=cache, use_cache=True)
    kv = torch.stack([torch.stack([layer.keys, layer.values]) for layer in cache.layers])
    return out.last_hidden_state, kv


def tree_pass(base: Base, forward: Forward, cache: KVCache, tree: Tree, tokens: list[list[int]]) -> Tensor:
    """One forward of every node after what the cache holds, as a step does it: hidden [B, N, D]."""
    cache.begin(tree.num_nodes)
    forward.reserve(cache.num_slots)
    positions_BN = torch.tensor(cache.lengths)[:, None] + torch.tensor(tree.depths)
    mask = TreeMask(tree.num_nodes, cache.num_slots, base.dtype, "cpu").of(cache, tree.ancestors()[None])
    with torch.inference_mode():
        return forward.hidden(torch.tensor(tokens), positions_BN, cache, mask)


def filled_cache(base: Base, prompts: list[list[int]], num_slots: int) -> KVCache:
    """A cache that holds these prompts, written one token at a time, rows apart from each other."""
    cache = KVCache(base.model.config, len(prompts), num_slots, base.dtype, base.device)
    # Whatever was never written is garbage: only a mask that shows it would notice.
    cache.kv.fill_(1e4)
    for row, prompt in enumerate(prompts):
        kv = causal_pass(twin(base), [prompt])[1]
        cache.kv[:, :, row, :, : len(prompt)] = kv[:, :, 0]
        cache.add(row, len(prompt))
    return cache


def path_to(tree: Tree, node: int) -> list[int]:
    path = [node]
    while tree.parents[path[0]] >= 0:
        path.insert(0, tree.parents[path[0]])
    return path


@pytest.mark.parametrize("lengths", [[6], [6, 6], [1, 9, 4]], ids=["one", "equal", "ragged"])
@pytest.mark.parametrize("way", [FastLlama, PlainForward], ids=["fast", "plain"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_row_of_a_tree_pass_equals_the_causal_pass_over_its_path(
    family: str, way: type[FastLlama | PlainForward], lengths: list[int]
) -> None:
    rng = random.Random(f"{family}{lengths}")
    base = random_base(family, 29, seed=1, dtype=torch.float64)
    model = twin(base)
    for tree in (random_tree(rng, 5, 6, 24), chain(3), ROOT_ONLY):
        prompts = [[rng.randrange(29) for _ in range(n)] for n in lengths]
        cache = filled_cache(base, prompts, max(lengths) + tree.num_nodes + 3)
        tokens = [[rng.randrange(29) for _ in range(tree.num_nodes)] for _ in prompts]
        hidden_BND = tree_pass(base, way(base.model), cache, tree, tokens)
        for row, prompt in enumerate(prompts):
            for depth in range(tree.max_depth + 1):
                nodes = [node for node in range(tree.num_nodes) if tree.depths[node] == depth]
                texts = [prompt + [tokens[row][n] for n in path_to(tree, node)] for node in nodes]
                expected_MTD, expected_kv = causal_pass(model, texts)
                assert_close(hidden_BND[row, nodes], expected_MTD[:, -1])
                found = cache.kv[:, :, row][:, :, :, [len(prompt) + node for node in nodes]]
                assert_close(found, expected_kv[..., -1, :].transpose(2, 3))


def decoder_of(base: Base, tree: Tree, batch_size: int, num_slots: int) -> Decoder:
    heads = random_heads(HEAD_DESIGNS[0], base)
    drafter = HeadsDrafter(base, heads, tree)
    return Decoder(base, drafter, batch_size, num_slots, dict.fromkeys(PARTS, 0.0))


def requests_of(base: Base, prompts: list[list[int]], temperature: float = 0.0) -> list[Request]:
    sampling = Sampling(temperature)
    return [Request(prompt, base.tokenizer, sampling, seed) for seed, prompt in enumerate(prompts)]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_cache_after_some_steps_equals_a_fresh_prefill(family: str) -> None:
    rng = random.Random(family)
    base = random_base(
        family, 5, seed=2, dtype=torch.float64
    )  # five tokens: random heads are often right, and paths are long
    model = twin(base)
    num_moved = 0
    for trial in range(6):
        batch_size = trial % 4 + 1
        tree = medusa63().pruned(4, 5) if trial == 0 else random_tree(rng, 4, 5, rng.randint(2, 30))
        prompts = random_prompts(rng, batch_size, 5, longest=12)
        decoder, temperature = decoder_of(base, tree, batch_size, 128), rng.choice([0.0, 1.0])
        decoder.cache.kv.fill_(1e4)
        decoder.add(0, requests_of(base, prompts, temperature))
        texts = [list(prompt) for prompt in prompts]
        for _ in range(8):
            for row, gained in enumerate(decoder.step()):
                texts[row] += gained
                num_moved += len(gained) > 1
            row = rng.randrange(len(texts))
            if rng.random() < 0.3:  # another prompt takes the row
                [texts[row]] = random_prompts(rng, 1, 5, longest=12)
                decoder.add(row, requests_of(base, [texts[row]], temperature))
            elif rng.random() < 0.3 and len(texts) > 1:  # or the last row
                decoder.swap_remove(row)
                texts[row] = texts[-1]
                texts.pop()
        assert decoder.texts == texts
        for row, text in enumerate(texts):
            assert decoder.cache.lengths[row] == len(text) - 1, "the root is not in the cache yet"
            if len(text) == 1:
                continue
            hidden_1TD, kv = causal_pass(model, [text[:-1]])
            assert_close(decoder.cache.kv[:, :, row, :, : len(text) - 1], kv[:, :, 0])
            assert_close(decoder._hidden_BD[row], hidden_1TD[0, -1])
    assert num_moved > 5, "the sample accepts drafted tokens"


def test_a_long_ragged_prompt_is_prefilled_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("euryale.decoding.prefill.CHUNK", 8)
    base = random_base("llama", 29, seed=4, dtype=torch.float64)
    rng = random.Random(0)
    for lengths in ([1], [2], [9], [17, 30, 1, 8, 9, 10], [25, 25], [1, 1]):
        prompts = [[rng.randrange(29) for _ in range(n)] for n in lengths]
        decoder = decoder_of(base, chain(2), len(prompts), 64)
        decoder.add(0, requests_of(base, prompts))
        assert decoder.cache.lengths == [n - 1 for n in lengths]
        assert decoder._root_B.tolist() == [prompt[-1] for prompt in prompts]
        for row, prompt in enumerate(prompts):
            if len(prompt) == 1:
                assert not decoder._hidden_BD[row].any()
                continue
            hidden_1TD, kv = causal_pass(twin(base), [prompt[:-1]])
            assert_close(decoder._hidden_BD[row], hidden_1TD[0, -1])
            assert_close(decoder.cache.kv[:, :, row, :, : len(prompt) - 1], kv[:, :, 0])


def random_cache(base: Base, batch_size: int, lengths: list[int]) -> KVCache:
    cache = KVCache(base.model.config, batch_size, 20, base.dtype, base.device)
    cache.kv.copy_(torch.randn(cache.kv.shape, generator=torch.Generator().manual_seed(0)))
    cache.lengths = list(lengths)
    return cache


@pytest.mark.parametrize("lengths", [[7], [5, 9, 0]], ids=["one", "ragged"])
def test_commit_moves_nothing_for_a_chain_prefix_or_a_closed_row(lengths: list[int]) -> None:
    cache = random_cache(random_base(), len(lengths), lengths)
    before = cache.kv.clone()
    cache.commit([[0, 1, 2], [0], []][: len(lengths)])
    assert torch.equal(cache.kv, before)
    assert cache.lengths == [n + k for n, k in zip(lengths, [3, 1, 0], strict=False)]


@pytest.mark.parametrize("lengths", [[7], [5, 9, 0]], ids=["one", "ragged"])
def test_commit_moves_the_accepted_nodes_and_nothing_else(lengths: list[int]) -> None:
    paths = [[0, 1, 4, 9], [0, 2, 3], [0, 5]][: len(lengths)]
    cache = random_cache(random_base(), len(lengths), lengths)
    expected = cache.kv.clone()
    for row, (path, length) in enumerate(zip(paths, lengths, strict=True)):
        for slot, node in enumerate(path):
            expected[:, :, row, :, length + slot] = cache.kv[:, :, row, :, length + node]
    cache.commit(paths)
    assert torch.equal(cache.kv, expected)
    assert cache.lengths == [n + len(p) for n, p in zip(lengths, paths, strict=True)]


def test_a_full_arena_is_a_bug_and_says_how_full() -> None:
    cache = random_cache(random_base(), 2, [3, 12])
    cache.begin(8)
    with pytest.raises(AssertionError, match="cache of 20 slots is full: 21 are needed"):
        cache.begin(9)


def test_the_arena_answers_what_transformers_asks_of_a_cache() -> None:
    cache = random_cache(random_base(), 2, [3, 12])
    cache.begin(4)
    assert cache.get_seq_length() == 12
    layer = cache.layers[1]
    assert layer.get_mask_sizes(4) == (16, 0) and layer.get_max_length() == layer.get_max_cache_shape() == 20
    assert layer.keys.data_ptr() == cache.kv[1, 0].data_ptr() and layer.values.data_ptr() == cache.kv[1, 1].data_ptr()
    layer.reset()
    assert cache.lengths == [0, 0] and cache.is_uniform


@pytest.mark.parametrize("lengths", [[4], [4, 4], [2, 5]], ids=["one", "equal", "ragged"])
def test_the_mask_shows_the_committed_slots_and_the_ancestors(lengths: list[int]) -> None:
    trees = [Tree.from_paths([(0,), (1,), (1, 0)]), chain(3)]
    mask = TreeMask(4, 20, torch.float32, "cpu")
    cache = random_cache(random_base(), len(lengths), lengths)
    cache.begin(4)
    own = torch.stack([tree.ancestors() for tree in trees[: len(lengths)]])
    # Shared by all rows, another one with the same mask object, and one for each row.
    for shown, of_rows in (
        (trees[0].ancestors()[None], trees[:1] * 2),
        (own[-1:], [trees[len(own) - 1]] * 2),
        (own, trees),
    ):
        seen = mask.of(cache, shown)
        assert seen is not None and seen.shape[1:] == (1, 4, max(lengths) + 4)
        for row, length in enumerate(lengths):
            for node in range(4):
                visible = list(range(length)) + [length + n for n in path_to(of_rows[row], node)]
                seen_here = (seen.expand(len(lengths), -1, -1, -1)[row, 0, node] == 0).nonzero().flatten().tolist()
                assert seen_here == visible


def test_one_node_sees_everything_there_is_and_needs_no_mask() -> None:
    cache = random_cache(random_base(), 1, [6])
    cache.begin(1)
    assert TreeMask(1, 20, torch.float32, "cpu").of(cache, ROOT_ONLY.ancestors()[None]) is None
