"""Odd configs of supported families: reproduced, or refused at load in one line with the field.

A case names where its fault was met first; "own" is ours. fuzz_configs.py tries many more at random.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzz_configs import Outcome, check_case, save_case
from odd_configs import Changes
from tiny_families import save_config_alone, tiny_config
from transformers import AutoModelForCausalLM

from euryale.base.base import load_base
from euryale.base.config import BaseConfig
from euryale.base.hidden_states import outputs_of_layers
from euryale.errors import UserError

YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}  # fmt: skip
REPRODUCED: list[tuple[str, Changes]] = [
    # Keys and values that are not what heads and widths of the config say: tracebacks at the first token
    ("gpt_bigcode", {"multi_query": False}),  # own
    ("gpt_neox", {"head_dim": 5}),  # leftovers that the family does not read
    ("ctrl", {"num_key_value_heads": 1}),
    ("gpt2", {"head_dim": 16, "num_key_value_heads": 3}),
    ("llama", {"head_dim": 6}),  # Mistral-Nemo's heads are narrower than its states
    ("qwen2", {"head_dim": 16}),
    ("qwen3", {"num_key_value_heads": 1}),
    ("phi", {"num_key_value_heads": 4}),
    ("laguna", {"num_attention_heads_per_layer": [4, 2]}),
    # Outputs of another form: tracebacks at load
    ("glm", {"return_dict": False}),
    ("ctrl", {"return_dict": False, "output_attentions": True}),
    ("llama", {"use_cache": False, "output_hidden_states": True}),
    # What another program wrote into the config: it could not be loaded
    ("llama", {"pad_token_id": 29}),  # transformers#19296: a padding token was added and the matrix was not
    ("opt", {"pad_token_id": -1}),
    ("qwen2", {"_attn_implementation": "flash_attention_2"}),  # Qwen3-VL#1682
    ("gpt2", {"attn_implementation": "flash_attention_2"}),
    # A last state narrower than the layers
    ("opt", {"word_embed_proj_dim": 8}),  # opt-350m
    # Logits that are scaled by a power of two: were refused (vllm#52158 left the factor out)
    ("cohere", {"logit_scale": 0.0625}),
    ("cohere", {"logit_scale": 0.125, "tie_word_embeddings": False}),
    ("cohere2", {"logit_scale": 0.25}),
    ("granite", {"logits_scaling": 16, "embedding_multiplier": 12.0, "residual_multiplier": 0.22}),
    ("granitemoe", {"logits_scaling": 0.5, "attention_multiplier": 0.015625}),
    ("hyperclovax", {"logits_scaling": 0.125}),
    # Numbers at the edge
    ("exaone4", {"vocab_size": 1}),
    ("gpt2", {"n_positions": 7}),
    ("llama", {"rms_norm_eps": 10.0, "hidden_act": "gelu", "attention_bias": True, "mlp_bias": True}),
    ("mistral", {"tie_word_embeddings": True, "attention_dropout": 0.5, "pretraining_tp": 2, "torch_dtype": "float16"}),
    ("llama", {"rope_parameters": YARN | {"mscale": 0.7, "mscale_all_dim": 1.3}}),
    ("qwen2", {"rope_parameters": YARN | {"attention_factor": 0.5, "beta_fast": 3.0, "truncate": False}}),
    ("llama", {"rope_parameters": LLAMA3}),
    ("glm4", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25}}),
    ("qwen2", {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 9, "layer_types": None}),
    ("llama", {"sliding_window": 9}),  # transformers' own cache forgets by it, though the family has no window
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True}),
]  # fmt: skip


def named(case: object) -> str:
    return str(case).replace(" ", "")[:60]


@pytest.mark.parametrize(("family", "changes"), REPRODUCED, ids=named)
def test_an_odd_config_is_reproduced(family: str, changes: Changes) -> None:
    assert check_case(family, changes, {}) == Outcome("equal")


REFUSED: list[tuple[str, Changes, str]] = [
    ("qwen3", {"num_key_value_heads": 3}, "num_key_value_heads=3, which must divide num_attention_heads=4"),
    ("phi", {"num_key_value_heads": 0}, "num_key_value_heads=0"),
    ("phi", {"max_position_embeddings": -1}, "max_position_embeddings=-1"),
    ("gpt2", {"n_positions": 1}, "max_position_embeddings=1"),
    ("nemotron", {"vocab_size": 0}, "vocab_size=0"),
    ("olmo", {"num_hidden_layers": 0}, "num_hidden_layers=0"),
    ("mistral", {"sliding_window": 0}, "sliding_window=0"),
    ("olmo", {"sliding_window": -1}, "sliding_window=-1"),
    # Attention makes zeros of scores that are NaN: these were let in, and refused after the first token
    ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": -1.0}}, "rope_theta=-1.0"),
    ("cohere2", {"rope_parameters": {"rope_type": "default", "rope_theta": 0}}, "rope_theta=0"),
    ("qwen2", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 0}}, "factor=0"),
    ("exaone4", {"sliding_window": None}, "sliding_window"),
    ("llama", {"rope_parameters": {"rope_type": "mrope", "mrope_section": [1, 1]}}, "a rope of the type mrope"),
    ("qwen3_moe", {"num_experts_per_tok": -1}, "cannot read a few tokens"),
    ("qwen2", {"layer_types": ["full_attention"]}, "layer_types"),
    ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ("llama", {"hidden_act": "no_such"}, "no_such"),
    ("llama", {"dtype": "no_such"}, "no_such"),
    ("llama", {"quantization_config": {"bits": 4}}, "quantisation of an unknown kind"),
    ("llama", {"quantization_config": "nf4"}, "quantization_config"),
]  # fmt: skip


@pytest.mark.parametrize(("family", "changes", "words"), REFUSED, ids=named)
def test_a_config_that_no_model_can_have_is_refused_in_one_line(family: str, changes: Changes, words: str) -> None:
    outcome = check_case(family, changes, {})
    assert outcome.kind == "refused" and words in outcome.detail, outcome
    assert "hub id" not in outcome.detail, "it is a folder"


PROPOSED: Changes = {
    "repetition_penalty": 1.5, "suppress_tokens": [4], "begin_suppress_tokens": [3], "forced_bos_token_id": 3,
    "forced_eos_token_id": 3, "num_beams": 4, "no_repeat_ngram_size": 2, "min_length": 9, "stop_strings": ["a"],
    "bad_words_ids": [[3]], "guidance_scale": 2.0,
}  # fmt: skip
OTHERS: Changes = {
    "max_length": 5, "cache_implementation": "static", "use_cache": False, "num_return_sequences": 1,
    "return_dict_in_generate": True, "pad_token_id": 99, "no_such": 1, "decoder_start_token_id": 3,
}  # fmt: skip


def test_what_a_generation_config_proposes_is_told_and_not_done(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The same command gives the same text with any base (verl#7270, NeMo-RL#3497)."""
    assert check_case("llama", {}, PROPOSED) == Outcome("equal")
    save_case("llama", {}, PROPOSED, tmp_path)
    caplog.clear()  # the comparison has loaded it too
    with caplog.at_level(logging.INFO):
        load_base(BaseConfig(path=str(tmp_path), dtype="float32", device="cpu"))
    [told] = [record.message for record in caplog.records if "generation_config.json proposes" in record.message]
    assert all(f"{name}={value}" in told for name, value in PROPOSED.items())


def test_any_other_generation_config_changes_nothing() -> None:
    assert check_case("qwen2", {}, OTHERS | {"eos_token_id": [1, 4]}) == Outcome("equal")


@pytest.mark.parametrize("family", ["cohere", "granite"])
def test_logits_of_a_base_that_scales_them_are_those_of_transformers_bit_for_bit(family: str, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"logit_scale": 0.25} if family == "cohere" else {"logits_scaling": 8.0}
    save_case(family, changes | {"tie_word_embeddings": True}, {}, tmp_path)
    ids_1T = torch.tensor([[5, 1, 7, 7, 2, 0, 3]])
    for dtype in (torch.float32, torch.bfloat16):
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype, attn_implementation="sdpa")
        base = load_base(BaseConfig(path=str(tmp_path), dtype=str(dtype).removeprefix("torch."), device="cpu"))
        with torch.no_grad():
            hidden_1TD = theirs.base_model(input_ids=ids_1T).last_hidden_state
            assert torch.equal(base.logits(hidden_1TD), theirs(input_ids=ids_1T).logits)
            assert torch.equal(base.embed(ids_1T), theirs.get_input_embeddings()(ids_1T)), "no longer tied"


def test_layers_wider_than_the_last_state_are_no_features(tmp_path: Path) -> None:
    save_case("opt", {"word_embed_proj_dim": 8}, {}, tmp_path)
    base = load_base(BaseConfig(path=str(tmp_path), dtype="float32", device="cpu"))
    assert base.hidden_size == 8 and base.embed(torch.tensor([1])).shape == (1, 8)
    with (
        pytest.raises(UserError, match="heads.features=several: .* 16 wide and its last states 8"),
        outputs_of_layers(base.model, [1]),
    ):
        pass


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("text", ["", "null", "[]", "{", "\ufeff{}", "\x00"], ids=repr)
def test_a_config_that_is_no_object_is_refused(name: str, text: str, tmp_path: Path) -> None:
    """transformers passes over a damaged generation_config.json, and with it over the ends of text that it names."""
    save_config_alone(tiny_config("llama"), tmp_path)
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=f"{tmp_path}/{name} (is not JSON|must hold one JSON object)"):
        load_base(BaseConfig(path=str(tmp_path), dtype="float32", device="cpu"))
