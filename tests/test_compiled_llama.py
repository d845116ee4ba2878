"""The compiled forward says what transformers says with the same products; every tree gives plain decoding's bits."""

import logging
import math
import random
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from compiled_models import ODD_SIZES, OWN, SIZES, compiled_base, in_4_bits, int4_base, specified
from compilers import needs_compiler
from random_models import FAMILIES, HEAD_DESIGNS, random_base, random_heads, random_prompts, random_tree
from torch import Tensor

from euryale.base.base import Base, load_base
from euryale.base.compiled_llama import CompiledLlama
from euryale.base.config import BaseConfig
from euryale.base.fast_llama import FastLlama
from euryale.base.hidden_states import join_states
from euryale.decoding.engine import Engine
from euryale.decoding.kv_cache import KVCache, TreeMask
from euryale.errors import UserError
from euryale.kernels.cpu.compile import library_for, load_library


def read(base: Base, cache: KVCache, ids_BN: Tensor, seen_RNN: Tensor, layers: tuple[int, ...] = ()) -> Tensor:
    """One pass over nodes after each row's committed tokens; positions are those of their depth."""
    forward = base.forward()
    cache.begin(ids_BN.shape[1])
    depths_RN = seen_RNN.sum(-1) - 1
    positions_BN = torch.tensor(cache.lengths)[:, None] + depths_RN
    mask = TreeMask(ids_BN.shape[1], cache.num_slots, base.dtype, "cpu").of(cache, seen_RNN)
    forward.reserve(cache.num_slots)
    return forward.hidden(ids_BN, positions_BN, cache, mask, layers)


def cache_of(base: Base, lengths: list[int]) -> KVCache:
    cache = KVCache(base.cache_config, len(lengths), 64, base.dtype, torch.device("cpu"))
    cache.lengths = list(lengths)
    return cache


def causal(num: int) -> Tensor:
    return torch.ones(1, num, num, dtype=torch.bool).tril()


@pytest.mark.parametrize("sizes", [SIZES, ODD_SIZES], ids=["whole", "odd"])
@pytest.mark.parametrize("bits", [4, 16, 32])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_states_and_logits_are_those_of_the_specified_products(
    family: str, bits: int, sizes: dict[str, object]
) -> None:
    """Two passes, the second after the cache of the first; biases, norms of queries and keys, tied outputs."""
    more = {"attention_bias": True} if family == "llama" else {}
    base = compiled_base(bits, family, seed=2, tie_word_embeddings=family == "qwen2", **sizes, **more)
    width, twin = base.hidden_size, specified(base, bits)
    ids_BT = torch.randint(29, (2, 13), generator=torch.Generator().manual_seed(1))
    out = twin.base_model(input_ids=ids_BT, output_hidden_states=True)
    expected = join_states(out.last_hidden_state, [out.hidden_states[1]])
    cache, found = cache_of(base, [0, 0]), []
    for start, stop in ((0, 9), (9, 13)):
        found.append(read(base, cache, ids_BT[:, start:stop], causal(stop - start), (1,)))
        cache.commit([list(range(stop - start))] * 2)
    difference = (torch.cat(found, 1).double() - expected).abs()
    # float32 against float64: 1e-6, but where a number of a row lies between two of the 8 bits, or of bfloat16, it may
    # fall on either side, and that moves a state by some thousandths. A wrong head, norm or position: by tenths.
    most, usual = (1e-4, 1e-5) if bits == 32 else (0.1, 2e-3)
    assert difference.median() < usual and difference.max() < most
    logits, wanted = base.forward().logits(found[0][..., :width]), twin.lm_head(expected[:, :9, :width])
    assert (logits.double() - wanted).abs().max() < most


def test_middle_states_come_in_the_order_that_is_asked() -> None:
    base = int4_base(num_hidden_layers=3)
    ids_BT = torch.arange(6)[None]
    one, two = (read(base, cache_of(base, [0]), ids_BT, causal(6), (layer,))[..., 64:] for layer in (1, 2))
    for layers, parts in (((1, 2), (one, two)), ((2, 1), (two, one)), ((1, 1), (one, one))):
        both = read(base, cache_of(base, [0]), ids_BT, causal(6), layers)
        assert torch.equal(both[..., 64:], torch.cat(parts, -1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("bits", "sizes"), [(4, SIZES), (16, SIZES), (32, SIZES), (16, ODD_SIZES), (32, ODD_SIZES)])
def test_a_node_of_any_tree_has_the_bits_of_plain_decoding(
    dtype: torch.dtype, threads: int, bits: int, sizes: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    for user in ("euryale.base.compiled_llama", "euryale.kernels.cpu_matrix"):
        monkeypatch.setattr(f"{user}.load_library", lambda: library_for(OWN))
    base, rng = compiled_base(bits, "qwen3", seed=4, dtype=dtype, **sizes), random.Random(4)
    prompt = torch.randint(29, (1, 21), generator=torch.Generator().manual_seed(2))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for _ in range(6):
            tree = random_tree(rng, 5, 4, 24)
            tokens_N = torch.randint(29, (1, tree.num_nodes), generator=torch.Generator().manual_seed(3))
            ancestors_1NN = tree.ancestors("cpu")[None]
            cache = cache_of(base, [0])
            read(base, cache, prompt, causal(21))
            cache.commit([list(range(21))])
            found_NC = read(base, cache, tokens_N, ancestors_1NN)[0]
            node = rng.randrange(tree.num_nodes)
            path = ancestors_1NN[0, node].nonzero().flatten().tolist()
            alone = cache_of(base, [0])
            for token in [*prompt[0].tolist(), *tokens_N[0, path].tolist()]:
                state_C = read(base, alone, torch.tensor([[token]]), causal(1))[0, 0]
                alone.commit([[0]])
            assert torch.equal(found_NC[node], state_C)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize(("temperature", "bits"), [(0.0, 16), (1.0, 16), (0.0, 4), (1.0, 4), (1.0, 32)])
def test_heads_give_the_text_of_plain_decoding_in_batches_too(family: str, temperature: float, bits: int) -> None:
    rng = random.Random(f"{family}{temperature}")
    base = compiled_base(bits, family, seed=7, dtype=torch.float32 if bits == 32 else torch.bfloat16)
    assert base.is_exact
    heads = random_heads(HEAD_DESIGNS[0], base)
    prompts = random_prompts(rng, 5, 29, longest=12)
    seeds = list(range(5))
    expected = Engine(base, drafter="none").generate(prompts, 24, seed=seeds, temperature=temperature)
    for drafter in ("heads", "lookup"):
        engine = Engine(base, heads, drafter, random_tree(rng, 4, 5, 20))
        found = engine.generate(prompts, 24, seed=seeds, temperature=temperature)
        assert [one.ids for one in found] == [one.ids for one in expected]
        assert all(one.is_exact for one in found)
        alone = [
            engine.generate([p], 24, seed=s, temperature=temperature)[0] for p, s in zip(prompts, seeds, strict=True)
        ]
        assert [one.ids for one in alone] == [one.ids for one in expected]


@pytest.mark.parametrize("bits", [4, 16, 32])
@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_token_without_numbers_breaks_no_node_that_does_not_see_it(bits: int, broken: float) -> None:
    """As a drafted one may be: plain decoding never reads it."""
    base = compiled_base(bits, seed=3)
    with torch.no_grad():
        base.model.get_input_embeddings().weight[28] = broken
    ids_1N, seen_1NN = torch.tensor([[3, 28, 4, 28, 5]]), torch.eye(5, dtype=torch.bool)[None]
    seen_1NN[..., 0] = True  # children of one root, each apart from the others
    found_1ND = read(base, cache_of(base, [0]), ids_1N, seen_1NN)
    for node in (0, 2, 4):
        path = [0, node] if node else [0]
        [alone_MD] = read(base, cache_of(base, [0]), ids_1N[:, path], causal(len(path)))
        assert alone_MD.isfinite().all() and torch.equal(found_1ND[0, node], alone_MD[-1])
    assert not found_1ND[0, 1].isfinite().all() and not found_1ND[0, 3].isfinite().all()


def test_weights_that_change_are_packed_again() -> None:
    base = int4_base()
    before = base.forward()
    assert base.forward() is before
    with torch.no_grad():
        base.model.base_model.layers[0].mlp.up_proj.weight.mul_(2)
    assert base.forward() is not before


def test_a_pass_keeps_its_rope_while_another_thread_reserves_more_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    base = compiled_base(32)
    forward, held = base.forward(), list[bool]()
    assert isinstance(forward, CompiledLlama)
    forward.reserve(64)
    tables = [weakref.ref(table) for table in forward._tables]

    def read_meanwhile(*given: object) -> None:
        forward.reserve(4096)
        held.extend(table() is not None for table in tables)

    monkeypatch.setattr(forward, "_library", SimpleNamespace(euryale_read=read_meanwhile))
    read(base, cache_of(base, [3]), torch.tensor([[1]]), causal(1))
    assert held == [True, True]


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"head_dim": 264}, "heads must be at most 256 wide; got 264"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}}, "a static rope"),
    ],
)
def test_heads_and_ropes_that_it_does_not_take_are_named(config: dict[str, object], named: str) -> None:
    with pytest.raises(UserError, match=named):
        in_4_bits(random_base("llama", 29, **(SIZES | config))).forward()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"forward": "plain"}, "base.forward must be auto or exact with base.quantization=int4"),
        ({"backend": "torch"}, "base.backend must be auto with base.quantization=int4"),
        ({"tensor_parallel": 2}, "base.tensor_parallel must be 1 with base.quantization=int4"),
        ({"dtype": "float16"}, "base.dtype must be auto or float32 or bfloat16 with base.quantization=int4"),
    ],
)
def test_settings_that_it_excludes_are_refused_before_weights_are_read(
    tiny_llama_folder: object, settings: dict[str, str], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(UserError, match=named):
        load_base(BaseConfig(path=str(tiny_llama_folder), quantization="int4", device="cpu", **settings))  # type: ignore[arg-type]


@needs_compiler
def test_a_model_that_4_bits_destroy_is_refused() -> None:
    """One weight of a block that is a thousand times the others leaves these without a digit."""
    base = random_base("llama", 29, **SIZES)
    with torch.no_grad():
        for layer in base.model.base_model.layers:
            layer.mlp.down_proj.weight[:, ::32] *= 1000
            layer.mlp.up_proj.weight[::32] = 0
    with pytest.raises(UserError, match="no longer the same model"):
        in_4_bits(base).forward()


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_base_in_its_own_numbers_is_read_by_it(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Not without a compiler; in bfloat16 not on a processor with AMX."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: False)
    base = random_base("llama", 29, dtype=dtype)
    assert isinstance(base.forward(), CompiledLlama) and base.is_exact
    with monkeypatch.context() as patched:
        patched.setattr("torch.cpu._is_amx_tile_supported", lambda: True)
        is_compiled = isinstance(random_base("llama", 29, dtype=dtype).forward(), CompiledLlama)
        assert is_compiled == (dtype == torch.float32)
    with monkeypatch.context() as patched:
        patched.setattr("shutil.which", lambda name: None)
        patched.setenv("EURYALE_CACHE", str(tmp_path))
        load_library.cache_clear()
        assert isinstance(random_base("llama", 29, dtype=dtype).forward(), FastLlama)
        assert "Install one (apt install g++)" in caplog.text and "int4" not in caplog.text
        with pytest.raises(UserError, match=r"int4: .* need a C\+\+ compiler; .* Or leave base.quantization=int4 out"):
            in_4_bits(random_base("llama", 29, dtype=dtype)).forward()
    load_library.cache_clear()


@needs_compiler
def test_a_library_without_openmp_is_taken_for_one_thread_and_said_for_two(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The fast forward has them all; 4 bits have no other forward."""
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: False)
    monkeypatch.setattr("euryale.base.choose_forward.why_one_thread", lambda: "it lacks OpenMP")
    base = random_base("llama", 29, dtype=torch.bfloat16)
    with caplog.at_level(logging.INFO):
        assert isinstance(base.forward(), CompiledLlama)
        assert "one thread" not in caplog.text
        base._forward = None
        monkeypatch.setattr("torch.get_num_threads", lambda: 2)
        assert isinstance(base.forward(), FastLlama)
        assert isinstance(int4_base().forward(), CompiledLlama)
    assert "the compiled one would run on one thread, because it lacks OpenMP" in caplog.text
    assert "the compiled forward runs on one thread, because it lacks OpenMP" in caplog.text


@needs_compiler
def test_a_forward_that_is_not_the_models_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: False)
    base = random_base("llama", 29, dtype=torch.bfloat16)
    base.model.base_model.layers[1].register_forward_hook(lambda module, given, out: out.roll(1, -1))
    assert not isinstance(base.forward(), CompiledLlama)
    assert "the compiled forward does not agree with LlamaForCausalLM" in caplog.text
