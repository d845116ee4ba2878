"""The fast forward says what transformers says, and stands aside where it cannot."""

import copy
import logging
import random

import pytest
import torch
from random_models import FAMILIES, HEAD_DESIGNS, random_base, random_heads, random_prompts, random_tree
from torch import nn
from transformers import DynamicCache

from euryale.base import fast_llama as fast_llama_module
from euryale.base.base import Base, load_base
from euryale.base.config import BaseConfig
from euryale.base.fast_llama import FastLlama, fast_forward, fits
from euryale.base.forward import PlainForward
from euryale.base.forward_check import agrees
from euryale.decoding.engine import Engine
from euryale.errors import UserError
from euryale.kernels import packed_linear
from euryale.kernels.packed_linear import PackedLinear, joined_linear, packed

pytestmark = pytest.mark.usefixtures("no_compiled_forward")


def with_forward(base: Base, forward: str) -> Base:
    return Base(base.model, base.tokenizer, base.path, base.fingerprint, forward=forward)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_keys_values_and_logits_equal_those_of_the_model(family: str, dtype: torch.dtype) -> None:
    """Two forwards, the second after the cache of the first; float64 runs on the tensors as they are, unpacked."""
    base = random_base(family, 29, seed=3, dtype=dtype, tie_word_embeddings=family == "qwen2")
    ways = (FastLlama(base.model), PlainForward(base.model))
    caches = [DynamicCache(config=base.model.config) for _ in ways]
    for start, stop in ((0, 9), (9, 10)):
        ids_BN = torch.randint(29, (3, stop - start), generator=torch.Generator().manual_seed(start))
        positions_BN = torch.arange(start, stop).expand(3, -1)
        found = []
        for way, cache in zip(ways, caches, strict=True):
            way.reserve(stop)
            hidden_BND = way.hidden(ids_BN, positions_BN, cache, None)
            found.append((hidden_BND, way.logits(hidden_BND), *((layer.keys, layer.values) for layer in cache.layers)))
        # States of size 1. Norms are float32 in any dtype, and so are all sums of the first: 8e-6 here, some times that
        # in the order of sums of another processor; a layer or a position that is wrong moves them by tenths.
        torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rope", ["linear", "llama3", "yarn"])
def test_every_rope_that_does_not_change_with_the_length_is_followed(rope: str) -> None:
    more: dict[str, dict[str, object]] = {
        "linear": {"factor": 4.0},
        "llama3": {
            "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32
        },
        "yarn": {"factor": 4.0, "original_max_position_embeddings": 32},
    }  # fmt: skip
    parameters = {"rope_type": rope, "rope_theta": 10000.0, **more[rope]}
    base = random_base("llama", 29, seed=1, rope_parameters=parameters)
    assert isinstance(base.forward(), FastLlama)


def test_a_rope_that_changes_with_the_length_goes_through_transformers() -> None:
    dynamic = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    base = random_base("llama", 29, rope_parameters=dynamic)
    assert not fits(base.model)
    assert isinstance(base.forward(), PlainForward)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("family", FAMILIES)
def test_both_forwards_give_the_same_text(family: str, temperature: float) -> None:
    rng = random.Random(f"{family}{temperature}")
    base = random_base(family, 29, seed=5, dtype=torch.float64)
    heads = random_heads(HEAD_DESIGNS[0], base)
    tree = random_tree(rng, 4, 5, 20)
    prompts = random_prompts(rng, 3, 29, longest=12)
    answers = []
    for forward in ("auto", "plain"):
        engine = Engine(with_forward(base, forward), heads, "heads", tree)
        answers.append([g.ids for g in engine.generate(prompts, max_new_tokens=20, temperature=temperature)])
    assert answers[0] == answers[1]


def test_weights_that_were_changed_are_read_anew() -> None:
    """A run that trains its base (LoRA, pretraining) decodes with it afterwards."""
    base = random_base("llama", 29, seed=6)
    before = base.forward()
    assert base.forward() is before
    with torch.no_grad():
        base.model.base_model.layers[0].mlp.up_proj.weight.mul_(0.5)
    after = base.forward()
    assert after is not before
    assert isinstance(after, FastLlama)
    assert agrees(base.model, after, [1, 5, 2, 8, 3, 9, 4, 7])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_model_that_computes_more_is_noticed_and_left_to_transformers(
    dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    base = random_base("llama", 29, seed=7, dtype=dtype)
    base.model.base_model.layers[1].mlp.register_forward_hook(lambda module, given, out: out * 1.5)
    with caplog.at_level(logging.WARNING, logger="euryale.base.fast_llama"):
        assert fast_forward(base.model, [1, 5, 2, 8, 3, 9, 4, 7]) is None
    assert "does not agree" in caplog.text


class Doubled(nn.Linear):
    """Stands for a LoRA or 4-bit layer: a linear layer that is more than its matrix."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def test_a_projection_that_is_more_than_its_matrix_is_asked_itself() -> None:
    base = random_base("llama", 29, seed=8)
    attention = base.model.base_model.layers[0].self_attn
    doubled = Doubled(attention.q_proj.in_features, attention.q_proj.out_features, bias=False)
    doubled.weight = copy.deepcopy(attention.q_proj.weight)
    attention.q_proj = doubled
    assert isinstance(base.forward(), FastLlama)


def test_without_room_for_a_second_copy_the_weights_are_used_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_llama_module, "has_room", lambda model: False)
    monkeypatch.setattr(packed_linear, "PackedLinear", None)  # would be called to copy
    monkeypatch.setattr(packed_linear, "_WORTH_IT", 0)
    base = random_base("qwen2", 29, seed=9)
    assert isinstance(base.forward(), FastLlama)


def test_large_matrices_of_a_base_are_laid_out_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_linear, "_WORTH_IT", 0)
    base = random_base("qwen2", 29, seed=9)
    forward = base.forward()
    assert isinstance(forward, FastLlama)
    assert all(isinstance(layer.qkv, PackedLinear) for layer in forward._layers)


@pytest.mark.parametrize("is_large", [False, True], ids=["small", "large"])
@pytest.mark.parametrize("num_rows", [1, 2, 5, 16, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_packed_product_is_the_product(num_rows: int, dtype: torch.dtype, is_large: bool) -> None:
    torch.manual_seed(num_rows)
    width = 512 if is_large else 24
    first, second = nn.Linear(width, 300, dtype=dtype), nn.Linear(width, 8, bias=False, dtype=dtype)
    x_MI = torch.randn(num_rows, width, dtype=dtype)
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.02}
    with torch.no_grad():
        joined = joined_linear([first, second], may_copy=True)
        # A small float32 matrix is not worth the call.
        is_packed = is_large if dtype == torch.float32 else packed_linear.multiplies_bfloat16()
        assert isinstance(joined, PackedLinear) == is_packed
        expected = torch.cat([first(x_MI), second(x_MI)], -1)
        torch.testing.assert_close(joined(x_MI), expected, **tolerance)
        torch.testing.assert_close(joined_linear([first, second], may_copy=False)(x_MI), expected, **tolerance)
        torch.testing.assert_close(packed(second.weight)(x_MI), second(x_MI), **tolerance)
        for may_copy in (True, False):
            scaled = joined_linear([first, second], may_copy, scale_I=2 * torch.ones(width, dtype=dtype))
            torch.testing.assert_close(scaled(x_MI), torch.cat([first(2 * x_MI), second(2 * x_MI)], -1), **tolerance)
            sum_MO = torch.randn(num_rows, 308, dtype=dtype)
            onto_MO = joined_linear([first, second], may_copy).onto(sum_MO, x_MI)
            torch.testing.assert_close(onto_MO, sum_MO + expected, **tolerance)
            onto_MO = joined_linear([second], may_copy).onto(sum_MO[:, :8], x_MI)
            torch.testing.assert_close(onto_MO, sum_MO[:, :8] + second(x_MI), **tolerance)


def test_an_unknown_forward_is_refused() -> None:
    with pytest.raises(UserError, match=r"base\.forward must be one of auto, exact, plain; got fast\."):
        load_base(BaseConfig(forward="fast"))


def test_what_is_exact_is_told_and_a_forward_that_must_be_is_refused_where_it_is_not() -> None:
    exact = with_forward(random_base("llama", 29, seed=3), "exact")
    assert exact.is_exact
    for base, accept, temperature, expected in (
        (exact, "exact", 1.0, True), (exact, "rejection", 1.0, False), (exact, "rejection", 0.0, True),
        (with_forward(exact, "plain"), "exact", 0.0, False),
    ):  # fmt: skip
        [generation] = Engine(base, drafter="lookup", accept=accept).generate([[1, 2]], 3, temperature=temperature)
        assert generation.is_exact == expected
    base = with_forward(random_base("llama", 29, seed=3, dtype=torch.float64), "exact")
    with pytest.raises(UserError, match=r"base\.forward=exact must have .*; got torch.float64 .* on cpu"):
        base.forward()
