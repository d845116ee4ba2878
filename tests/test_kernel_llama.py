"""The kernel forward says what the model says, through the specification of every kernel (backend=torch)."""

import logging
import random
from pathlib import Path

import pytest
import torch
from kernel_bases import SIZES, kernel_base, with_backend
from random_models import FAMILIES, HEAD_DESIGNS, random_base, random_heads, random_prompts, random_tree
from torch import nn
from transformers import AutoModelForCausalLM
from triton.errors import TritonError

from euryale.base import choose_forward
from euryale.base.choose_forward import ForwardSettings
from euryale.base.config import BaseConfig, LoraConfig
from euryale.base.fast_llama import FastLlama
from euryale.base.forward_check import is_near
from euryale.base.kernel_llama import KernelLlama, Slots, TreeBits
from euryale.base.lora import adapter_disabled, adapter_parameters, add_adapter
from euryale.base.random_base import random_base as base_of_config
from euryale.decoding.config import DrafterConfig, TreeConfig
from euryale.decoding.engine import Engine
from euryale.decoding.tree.tree import Shape, chain
from euryale.errors import UserError
from euryale.kernels import registry

CPU = torch.device("cpu")
IDS = [1, 5, 2, 8, 3, 9, 4, 7]
ROPES: dict[str, dict[str, object]] = {
    "linear": {"factor": 4.0},
    "llama3": {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 32},
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_every_node_of_a_tree_has_the_states_of_its_path(family: str) -> None:
    """Rows of different lengths, a tree with forks, tied embeddings, and the outputs of two layers."""
    base = kernel_base(family, "torch", tie_word_embeddings=family == "qwen2")
    forward = base.forward()
    assert isinstance(forward, KernelLlama)
    forward.reserve(40)
    tree = random_tree(random.Random(family), 3, 4, 7)
    shape, lengths = Shape.of_tree(tree), [5, 9]
    N = tree.num_nodes
    prompts = torch.randint(29, (2, max(lengths)), generator=torch.Generator().manual_seed(1))
    nodes_BN = torch.randint(29, (2, N), generator=torch.Generator().manual_seed(2))
    kv = torch.full((2, 2, 2, 2, 24, 16), torch.nan)  # what no query may see
    for row, length in enumerate(lengths):
        slots = Slots(kv[:, :, row : row + 1], torch.zeros(1, dtype=torch.int32))
        causal = TreeBits.of(torch.arange(length)[None], torch.ones(1, length, length, dtype=torch.bool).tril())
        forward.read_tree(prompts[row : row + 1, :length], slots, causal, forward.attention(length, length))
    bits = TreeBits.of(shape.depths_RN, shape.ancestors_RNN)
    slots = Slots(kv, torch.tensor(lengths, dtype=torch.int32))
    found_BNC = forward.read_tree(nodes_BN, slots, bits, forward.attention(N, 3), layers=(1, 2))
    for row, length in enumerate(lengths):
        for node in range(N):
            path = shape.ancestors_RNN[0, node].nonzero()[:, 0]
            ids_T = torch.cat([prompts[row, :length], nodes_BN[row, path]])[None]
            zeros = torch.zeros_like(ids_T)
            whole = base.forward_packed(ids_T, torch.arange(ids_T.shape[1])[None], zeros, (1, 2))[0, -1]
            torch.testing.assert_close(found_BNC[row, node], whole, rtol=1e-4, atol=1e-4)
            [logits_V] = forward.logits(found_BNC[row, node : node + 1, :16])
            torch.testing.assert_close(logits_V, base.logits(whole[:16]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rope", ROPES)
def test_every_rope_that_does_not_change_with_the_length_is_followed(rope: str) -> None:
    parameters = {"rope_type": rope, "rope_theta": 10000.0, **ROPES[rope]}
    assert isinstance(kernel_base("llama", "torch", rope_parameters=parameters).forward(), KernelLlama)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_in_16_bits_it_is_as_near_to_float32_as_the_model_is(dtype: torch.dtype) -> None:
    assert isinstance(kernel_base("qwen3", "torch", dtype=dtype).forward(), KernelLlama)


@pytest.mark.parametrize(("family", "temperature"), list(zip(FAMILIES, (0.0, 0.9, 0.9, 0.0), strict=True)))
def test_the_engine_gives_the_text_of_the_cpu_s_own_forward(family: str, temperature: float) -> None:
    rng = random.Random(f"{family}{temperature}")
    base = kernel_base(family, "torch")
    own = with_backend(base, "auto")
    heads = random_heads(HEAD_DESIGNS[-3], base)  # they read the outputs of two layers
    prompts = random_prompts(rng, 4, 29, longest=12)
    how = {"max_new_tokens": 14, "temperature": temperature}
    expected = [g.ids for g in Engine(own, drafter="none", max_rows=2).generate(prompts, **how)]
    small = random_base(family, 29, seed=8)
    for drafter, tree in (
        ("none", None), ("heads", random_tree(rng, 4, 5, 12)), ("heads", chain(3)), ("lookup", chain(3)),
        ("heads+lookup", chain(2)), ("lookahead", None), ("model", random_tree(rng, 2, 3, 6)),
        ("heads", TreeConfig("dynamic", 9)),
    ):  # fmt: skip
        config = DrafterConfig(drafter, window=2, candidates=2)
        draft_base = with_backend(small, "torch") if drafter == "model" else None
        engine = Engine(base, heads, config, tree, draft_base=draft_base, max_rows=2)
        assert [g.ids for g in engine.generate(prompts, **how)] == expected, drafter
    assert not any(g.is_exact for g in Engine(base, drafter="none").generate(prompts[:1], 2))


def test_long_prompts_are_read_in_chunks() -> None:
    base = kernel_base("llama", "torch", max_length=300)
    prompts = [[token % 29 for token in range(200)], [3, 4]]
    found, expected = (Engine(b, drafter="none").generate(prompts, 6) for b in (base, with_backend(base, "auto")))
    assert [g.ids for g in found] == [g.ids for g in expected]


def test_joined_weights_take_no_second_memory_and_stay_the_model_s(tmp_path: Path) -> None:
    """The model can be saved, and what is written to its weights is decoded with."""
    base = kernel_base("qwen2", "torch", seed=6)
    before = base.forward()
    attention = base.model.base_model.layers[0].self_attn
    storages = {getattr(attention, f"{x}_proj").weight.untyped_storage().data_ptr() for x in "qkv"}
    assert len(storages) == 1
    base.model.save_pretrained(tmp_path)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path)
    for (name, one), other in zip(saved.named_parameters(), base.model.parameters(), strict=True):
        assert torch.equal(one, other), name
    with torch.no_grad():
        attention.k_proj.weight.mul_(0.5)
    after = base.forward()
    assert after is not before and isinstance(after, KernelLlama)
    assert attention.k_proj.weight.untyped_storage().data_ptr() in storages  # they lay side by side already
    assert is_near(base.model, after.read_sample(IDS), IDS)


class Doubled(nn.Linear):
    """Stands for a LoRA layer: a linear layer that is more than its matrix."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def test_a_projection_that_is_more_than_its_matrix_is_asked_itself() -> None:
    base = kernel_base("llama", "torch")
    attention = base.model.base_model.layers[0].self_attn
    doubled = Doubled(attention.q_proj.in_features, attention.q_proj.out_features, bias=False)
    doubled.weight = attention.q_proj.weight
    attention.q_proj = doubled
    assert isinstance(base.forward(), KernelLlama)


def test_a_model_that_computes_more_is_refused_where_kernels_are_named() -> None:
    base = kernel_base("llama", "torch")
    base.model.base_model.layers[1].mlp.register_forward_hook(lambda module, given, out: out * 1.5)
    with pytest.raises(UserError, match=r"base\.backend=torch: the kernels do not agree with LlamaForCausalLM"):
        base.forward()


def test_a_4_bit_base_runs_in_three_ways_that_agree() -> None:
    """In float32, where the specification of the kernel, the expanded matrices and bitsandbytes round alike."""
    pytest.importorskip("bitsandbytes", reason="only a 4-bit base needs it")
    sizes = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
    config = random_base("qwen2", 29, **sizes).model.config  # type: ignore[arg-type]
    base = base_of_config(config, BaseConfig(quantization="nf4", dtype="float32", device="cpu"))
    states, texts = [], []
    for runtime in ("kernel", "expand", "bnb"):
        one = with_backend(base, "torch", runtime)
        forward = one.forward()
        assert isinstance(forward, KernelLlama)
        states.append(forward.read_sample(IDS))
        texts.append([g.ids for g in Engine(one, drafter="lookup").generate([IDS, IDS[:3]], 8)])
    for found in states[1:]:
        torch.testing.assert_close(found, states[0], rtol=1e-4, atol=1e-4)
    assert texts[0] == texts[1] == texts[2]
    on_cpu = with_backend(base, "auto", "expand")  # the CPU's own forward, over matrices that it lays out anew
    assert isinstance(on_cpu.forward(), FastLlama) and on_cpu.is_exact and not with_backend(base, "auto").is_exact
    assert [g.ids for g in Engine(on_cpu, drafter="lookup").generate([IDS, IDS[:3]], 8)] == texts[0]


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_adapters_alongside_are_added_to_the_products_of_their_layers(
    quantization: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What peft's layers say, with the adapters in use and switched off."""
    pytest.importorskip("peft", reason="only bases with adapters need it")
    pytest.importorskip("bitsandbytes", reason="only a 4-bit base needs it")
    sizes = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
    config = random_base("qwen2", 29, **sizes).model.config  # type: ignore[arg-type]
    base = base_of_config(config, BaseConfig(quantization=quantization, dtype="float32", device="cpu"))
    add_adapter(base, LoraConfig(rank=3))
    for parameter in adapter_parameters(base).values():
        parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.3
    with caplog.at_level(logging.INFO, logger="euryale.base.kernel_llama"):
        forward = KernelLlama(base.model, "torch", "kernel" if quantization == "nf4" else "auto")
    assert f"{7 * 2} with an adapter" in caplog.text
    ids_1T = torch.tensor([IDS])
    packed = (ids_1T, torch.arange(len(IDS))[None], torch.zeros_like(ids_1T))
    with torch.no_grad():
        adapted_1TD = base.forward_packed(*packed)
        torch.testing.assert_close(forward.read_sample(IDS), adapted_1TD, rtol=1e-3, atol=1e-4)
        with adapter_disabled(base):
            bare_1TD = base.forward_packed(*packed)
            torch.testing.assert_close(forward.read_sample(IDS), bare_1TD, rtol=1e-3, atol=1e-4)
    assert (adapted_1TD - bare_1TD).abs().max() > 0.1


def seem_interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the registry sees it. A kernel imported now would stay interpreted in this process, for every later test."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(registry, "_load", lambda kernel, implementation: len)


def test_a_tree_that_no_kernel_takes_is_refused_when_the_engine_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="the message is that of an installed triton")
    seem_interpreted(monkeypatch)
    base = kernel_base("llama", "triton")
    with pytest.raises(UserError, match="base.backend=triton cannot run: num_nodes must be 1 to 64; got 66"):
        Engine(base, drafter="lookup", tree=TreeConfig("dynamic", 66))
    with pytest.raises(UserError, match="base.backend=triton cannot run: depth must be 0 to 32; got 40"):
        Engine(base, drafter="lookup", tree=chain(40))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"backend": "cublas"}, r"base\.backend must be one of auto, triton, cuda, torch; got cublas"),
        ({"nf4_runtime": "fast"}, r"base\.nf4_runtime must be one of auto, kernel, expand, bnb; got fast"),
        ({"backend": "torch", "forward": "plain"}, r"base\.forward must be auto with base\.backend=torch; got plain"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        ForwardSettings.of(BaseConfig(**settings))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"backend": "triton"}, r"base\.backend=triton cannot run: .*TRITON_INTERPRET=1.* Use base\.backend=torch"),
        ({"backend": "cuda"}, r"tree_attention: base\.backend=cuda cannot run: it needs a CUDA card"),
        (
            {"nf4_runtime": "kernel"},
            r"nf4_runtime must be auto, expand or bnb where .*; got kernel on cpu\. Use expand",
        ),
    ],
)
def test_what_cannot_run_here_is_said_with_what_would(
    settings: dict[str, str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton", reason="the message is that of an installed triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    config = random_base("llama", 29, **SIZES["llama"]).model.config  # type: ignore[arg-type]
    with pytest.raises(UserError, match=told):
        ForwardSettings(**settings).check(config, CPU, torch.float32)


@pytest.mark.parametrize(
    ("sizes", "dtype", "told"),
    [
        ({"head_dim": 24}, torch.float32, "tree_attention: .*head_size must be 16, 32, 64 or 128; got 24"),
        ({"num_attention_heads": 34, "hidden_size": 34}, torch.float32, "group_size must be 1 to 16; got 17"),
        ({}, torch.float64, "dtype must be float32, bfloat16 or float16; got float64. Use base.backend=torch"),
    ],
)
def test_sizes_that_no_kernel_takes_are_refused_by_the_config_alone(
    sizes: dict[str, object], dtype: torch.dtype, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton", reason="the message is that of an installed triton")
    seem_interpreted(monkeypatch)
    config = random_base("llama", 29, **(SIZES["llama"] | sizes)).model.config  # type: ignore[arg-type]
    with pytest.raises(UserError, match=told):
        ForwardSettings(backend="triton").check(config, CPU, dtype)


@pytest.mark.parametrize("error", [RuntimeError("no C compiler\nsecond line"), TritonError("no C compiler")])
def test_kernels_that_do_not_run_are_done_without_and_the_log_says_why(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(self: KernelLlama, sample: list[int]) -> None:
        raise error

    base = kernel_base("llama", "torch")
    sample = list(range(3, 17))
    assert choose_forward._checked(base.model, sample, ForwardSettings()) is not None
    monkeypatch.setattr(KernelLlama, "read_sample", fail)
    assert choose_forward._checked(base.model, sample, ForwardSettings()) is None
    assert caplog.messages[-1] == "the kernels do not run on this machine (no C compiler); decoding goes without"
