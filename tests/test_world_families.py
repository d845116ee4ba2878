"""Model families: those let in are reproduced, all others are refused by name before weights are read."""

from __future__ import annotations

import logging
import random
from pathlib import Path

import pytest
import torch
from families_table import compare, engines, generate, table, verdict, written_table
from tiny_families import CONTEXT, FAMILIES, VOCAB, random_model, save, save_config_alone, tiny_config, tiny_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedConfig, T5Config

from euryale.base.base import Base, load_base
from euryale.base.base_info import describe_base
from euryale.base.config import BaseConfig
from euryale.base.families import SUPPORTED, context_length, refused_feature
from euryale.decoding.engine import Engine
from euryale.errors import UserError

WORKING = [family for family in FAMILIES if verdict(family) == "yes"]
REFUSED = [family for family in FAMILIES if family not in WORKING]


def load(folder: Path, **settings: str) -> Base:
    return load_base(BaseConfig(path=str(folder), dtype="float32", device="cpu", **settings))


def refusal(config: PreTrainedConfig, folder: Path) -> str:
    """The message of a folder whose weights cannot be read: its config alone refused it."""
    with pytest.raises(UserError) as refused:
        load(save_config_alone(config, folder))
    message = str(refused.value)
    assert "\n" not in message and f"model_type={config.model_type} is not supported: it has" in message
    return message


def test_the_table_of_the_documents_is_what_the_code_says() -> None:
    assert written_table() == table(), "run python tests/families_table.py 30"
    assert len(FAMILIES) > 150 and set(WORKING) == set(SUPPORTED)


@pytest.mark.parametrize("family", WORKING)
def test_a_family_that_is_let_in_is_reproduced(family: str, tmp_path: Path) -> None:
    """Two short answers together, in a tree of heads; every token is transformers' own choice after those before it."""
    model = tiny_model(family)
    engine = engines(load(save(model, tmp_path)), random.Random(family))["heads"]
    prompts = [[5, 1, 7, 7, 2], [3]]
    for prompt, answer in zip(prompts, engine.generate(prompts, 8, ignore_eos=True), strict=True):
        logits_1TV = model(input_ids=torch.tensor([prompt + answer.ids])).logits
        assert answer.ids == logits_1TV[0, len(prompt) - 1 : -1].argmax(-1).tolist()


@pytest.mark.parametrize("family", ["llama", "mixtral", "gemma3_text"])
def test_every_way_of_decoding_reproduces_a_family(family: str) -> None:
    assert not any(compare(tiny_model(family), 2).wrong.values())


@pytest.mark.slow
@pytest.mark.parametrize("family", WORKING)
def test_a_family_that_is_let_in_is_reproduced_in_30_answers(family: str) -> None:
    found = compare(tiny_model(family), num_answers=30, seed=1)
    assert not any(found.wrong.values()), found
    assert found.tau > 1.3, "drafts were accepted"


@pytest.mark.parametrize("family", REFUSED)
def test_a_family_that_is_not_let_in_is_refused_by_name_before_its_weights_are_read(
    family: str, tmp_path: Path
) -> None:
    refusal(tiny_config(family), tmp_path)


CONFIGURED: list[tuple[str, dict[str, object], str]] = [
    ("gemma2", {"final_logit_softcapping": 30.0}, "capped logits"),
    ("gemma2", {"attn_logit_softcapping": 50.0}, "capped attention scores"),
    ("nanochat", {"final_logit_softcapping": 15.0}, "capped logits"),  # a probe of a few tokens does not see it
    ("cohere", {"logit_scale": 0.3}, "scaled logits, by a factor that is no power of two (logit_scale=0.3)"),
    ("cohere2", {"logit_scale": -0.25}, "scaled logits"),
    ("granite", {"logits_scaling": 0}, "scaled logits"),
    ("granitemoe", {"logits_scaling": 6.0}, "scaled logits"),
    ("gemma", {"use_bidirectional_attention": True}, "attention to later tokens"),
    ("gemma3_text", {"attn_logit_softcapping": 50.0}, "capped attention scores"),
    ("llama", {"per_layer_config": {1: {"intermediate_size": 32}}}, "layers of different shapes"),
    ("qwen3", {"layer_types": ["full_attention", "linear_attention"]}, "recurrent or convolutional state"),
    ("qwen2", {"layer_types": ["chunked_attention", "full_attention"]}, "chunked attention"),
    ("smollm3", {"layer_types": ["full_attention", "conv"]}, "recurrent or convolutional state"),
]


@pytest.mark.parametrize(("family", "settings", "feature"), CONFIGURED, ids=lambda value: str(value)[:40])
def test_a_family_that_works_is_refused_where_its_config_does_more(
    family: str, settings: dict[str, object], feature: str, tmp_path: Path
) -> None:
    config = tiny_config(family, **settings)
    assert feature in refusal(config, tmp_path)
    assert feature in str(refused_feature(config))


def test_what_is_no_causal_language_model_is_refused(tmp_path: Path) -> None:
    config = T5Config(vocab_size=VOCAB, d_model=16, num_layers=1)
    assert "no causal language model" in refusal(config, tmp_path)
    with pytest.raises(UserError, match="no causal language model"):
        describe_base(BaseConfig(path=str(tmp_path)))


LONG = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 1.6, "original_max_position_embeddings": 40,
        "short_factor": [1.0, 1.0], "long_factor": [3.0, 9.0]}  # fmt: skip
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}
GROWING = [
    ("llama", {"rope_parameters": LONG}, 40),  # transformers#33129
    ("phi3", {"rope_parameters": LONG, "original_max_position_embeddings": 40}, 40),
    ("qwen2", {"rope_parameters": LONG, "layer_types": ["full_attention"] * 2}, 40),
    ("llama", {"rope_parameters": DYNAMIC, "max_position_embeddings": 40}, 40),
    ("mistral", {"sliding_window": 40}, 40),
    ("gemma3_text", {"sliding_window": 40, "layer_types": ["sliding_attention", "full_attention"]}, 40),
    ("olmo3", {"sliding_window": 40, "layer_types": ["full_attention", "sliding_attention"]}, 40),
]


@pytest.mark.parametrize(("family", "settings", "length"), GROWING, ids=lambda value: str(value)[:60])
def test_where_passes_would_begin_to_differ_the_context_ends(
    family: str, settings: dict[str, object], length: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """40 new tokens from 31: drafted text was another in 6 of 20 (lookup) and 20 of 20 (lookahead)."""
    model = random_model(tiny_config(family, **settings))
    with caplog.at_level(logging.INFO):
        base = load(save(model, tmp_path))
    assert base.max_length == length
    if length < int(model.config.max_position_embeddings):
        assert f"the context ends at {length} tokens of {model.config.max_position_embeddings}" in caplog.text
    rng = random.Random(0)
    prompts = [[rng.randrange(VOCAB) for _ in range(n)] for n in (31, 5, 39)]
    expected = [generate(model, prompt, length - len(prompt)) for prompt in prompts]
    for drafter in ("none", "lookahead"):
        engine = Engine(base, drafter=drafter)
        together = engine.generate(prompts, 40)
        assert [answer.ids for answer in together] == expected
        assert {answer.finish_reason for answer in together} == {"context"}
        assert engine.generate([prompts[0]], 40)[0].ids == expected[0]
        with pytest.raises(UserError, match=f"the context of .* ends at {length}"):
            engine.generate([[1] * length], 1)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, CONTEXT),
        ({"rope_parameters": YARN}, 2 * CONTEXT),  # Qwen2.5's advice: the length of training and a factor
        ({"rope_parameters": YARN | {"original_max_position_embeddings": 32}}, CONTEXT),  # the product is given
        ({"rope_parameters": YARN | {"factor": 4.0, "original_max_position_embeddings": 32}}, 2 * CONTEXT),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}, 4 * CONTEXT),  # Vicuna 16k
        (
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
                                 "high_freq_factor": 4.0, "original_max_position_embeddings": 32}},
            CONTEXT,
        ),
        ({"rope_parameters": DYNAMIC}, CONTEXT),
        ({"rope_parameters": LONG}, 40),
    ],
    ids=lambda value: str(value)[:70],
)  # fmt: skip
def test_a_scaled_rope_reaches_as_far_as_it_was_stretched(settings: dict[str, object], expected: int) -> None:
    assert context_length(tiny_config("llama", **settings)) == expected


def test_a_stretched_rope_is_reproduced_beyond_the_length_of_its_training(tmp_path: Path) -> None:
    model = random_model(tiny_config("llama", rope_parameters=YARN))
    base = load(save(model, tmp_path))
    prompt = [token % VOCAB for token in range(CONTEXT - 10)]
    expected = generate(model, prompt, 30)
    for drafter in ("none", "lookup", "lookahead"):
        assert Engine(base, drafter=drafter).generate([prompt, [3]], 30)[0].ids == expected


STORED = [
    ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "gptq"),
    ({"quant_method": "awq", "bits": 4}, "awq"),
    ({"quant_method": "fp8", "activation_scheme": "dynamic"}, "fp8"),
    ({"quant_method": "compressed-tensors"}, "compressed-tensors"),
    ({"quant_method": "mxfp4"}, "mxfp4"),
    ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes int8"),
    ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}, "bitsandbytes fp4"),
]


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize(("stored", "name"), STORED, ids=lambda value: str(value)[:30])
def test_weights_that_are_stored_in_another_quantisation_are_refused_by_its_name(
    stored: dict[str, object], name: str, quantization: str, tmp_path: Path
) -> None:
    if quantization == "nf4":
        pytest.importorskip("bitsandbytes")
    config = tiny_config("llama", quantization_config=stored)
    with pytest.raises(UserError, match=f"its weights are stored in the quantisation {name}"):
        load(save_config_alone(config, tmp_path), quantization=quantization)


@pytest.mark.parametrize("quantization", ["none", "nf4", "auto"])
def test_weights_that_are_stored_in_4_bits_are_those_that_loading_in_4_bits_makes(
    quantization: str, tmp_path: Path
) -> None:
    """The folders that unsloth and others publish; they were made to multiply in bfloat16."""
    bnb = pytest.importorskip("bitsandbytes")
    whole = save(random_model(tiny_config("llama", hidden_size=32, intermediate_size=64, head_dim=8)), tmp_path / "a")
    made = load(whole, quantization="nf4")
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    stored = AutoModelForCausalLM.from_pretrained(whole, quantization_config=settings)
    base = load(save(stored, tmp_path / "b"), quantization=quantization)
    layers = [module for module in base.model.modules() if isinstance(module, bnb.nn.Linear4bit)]
    assert len(layers) == 14 and {layer.compute_dtype for layer in layers} == {torch.float32}
    assert base.identity()["quantization"] == "nf4"
    assert describe_base(BaseConfig(path=str(tmp_path / "b"))).quantization == "nf4"
    ids_BT = torch.arange(VOCAB)[None]
    assert torch.equal(base.model(input_ids=ids_BT).logits, made.model(input_ids=ids_BT).logits)
    for drafter in ("none", "lookup"):
        assert Engine(base, drafter=drafter).generate([[1, 2, 3]], 12)[0].ids == generate(made.model, [1, 2, 3], 12)
