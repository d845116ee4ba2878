"""Fields of a config and values that they seldom have, for fuzz_configs.py. Not a test file itself."""

from __future__ import annotations

import random
from typing import Any

Changes = dict[str, Any]
ACTIVATIONS = (
    "silu",
    "gelu",
    "gelu_new",
    "gelu_pytorch_tanh",
    "relu",
    "relu2",
    "quick_gelu",
    "tanh",
    "xielu",
    "no_such",
)
# Written by transformers for every model, or only of use in training, in other tasks or for names.
OF_NO_EFFECT = {
    "transformers_version", "architectures", "return_dict", "id2label", "label2id", "problem_type", "_name_or_path",
    "model_type", "initializer_range", "init_std", "chunk_size_feed_forward", "dtype",
}  # fmt: skip
ROPES: list[dict[str, Any]] = [
    {"rope_type": "default", "rope_theta": 100},
    {"rope_type": "default", "partial_rotary_factor": 0.5},
    {"rope_type": "default", "partial_rotary_factor": 0.25},
    {"rope_type": "linear", "factor": 2.5},
    {"rope_type": "linear", "factor": 0.5},
    {"rope_type": "linear"},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 9},
    {"rope_type": "dynamic"},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 16},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 16},
    {"rope_type": "llama3", "factor": 8.0},
    {"rope_type": "yarn", "factor": 4.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8, "mscale": 0.7, "mscale_all_dim": 1.3},
    {"rope_type": "yarn", "factor": 4.0, "attention_factor": 0.5, "beta_fast": 3.0, "truncate": False},
    {"rope_type": "yarn", "factor": 1.0, "beta_fast": 1, "beta_slow": 1},
    {"rope_type": "yarn"},
    {"rope_type": "longrope", "short_factor": [1.0, 1.5], "long_factor": [3.0, 9.0], "factor": 2.0,
     "original_max_position_embeddings": 9},
    {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [3.0], "original_max_position_embeddings": 32},
    {"rope_type": "longrope", "original_max_position_embeddings": 32},
    {"rope_type": "proportional", "partial_rotary_factor": 0.5},
    {"rope_type": "axial"},
    {"rope_type": "mrope", "mrope_section": [1, 1]},
    {"type": "linear", "factor": 2.0},
    {"type": "su", "factor": 2.0},
    {"factor": 2.0},
    {"rope_type": None},
    {"rope_type": "linear", "factor": "2.0"},
    {"rope_type": "default", "rope_theta": -1.0},
    {"rope_type": "default", "rope_theta": 0},
]  # fmt: skip
# Values of fields of any family; in a config of another family they are leftovers.
VALUES: dict[str, list[Any]] = {
    "torch_dtype": ["float16"], "dtype": ["bfloat16", "no_such"], "pretraining_tp": [2],
    "quantization_config": [None, {}, {"bits": 4}, {"quant_method": "gptq", "bits": 4}, "nf4"],
    "auto_map": [{"AutoModelForCausalLM": "own--model.Own"}],
    "rope_theta": [500.0], "rope_scaling": [None, {"type": "linear", "factor": 2.0}, "linear", {"factor": 2.0}],
    "partial_rotary_factor": [0.5], "rotary_pct": [0.5], "rotary_dim": [2],
    "head_dim": [5, 6, 16], "num_key_value_heads": [1, 3, 4], "num_attention_heads": [2], "hidden_size": [18, 20, 32],
    "num_hidden_layers": [0, 1, 3], "word_embed_proj_dim": [8], "vocab_size": [1, 31, 29.0],
    "tie_word_embeddings": [True, False], "use_cache": [False], "is_decoder": [True, False],
    "add_cross_attention": [True], "is_encoder_decoder": [True], "use_bidirectional_attention": [True],
    "sliding_window": [4, 0, -1, None], "attention_dropout": [0.5], "attention_bias": [True], "mlp_bias": [True],
    "layer_types": [["full_attention", "sliding_attention"], ["full_attention"], [], None],
    "max_position_embeddings": [8, 1, 0, None, 1e6, "64"],
    "pad_token_id": [99, -1, 0, 3], "bos_token_id": [99, -1], "eos_token_id": [[2, 99], 4, []],
    "rms_norm_eps": [0.0, 10.0, 1e-30, "1e-5"], "hidden_act": ["gelu", None, "swish"],
    "attn_implementation": ["flash_attention_2"], "_attn_implementation": ["flash_attention_2"],
    "output_hidden_states": [True], "output_attentions": [True], "return_dict": [False], "use_return_dict": [False],
    "alibi": [False, True], "num_nextn_predict_layers": [1], "no_such_field": [1],
    "logits_scaling": [1, 2.0], "logit_scale": [0.5], "final_logit_softcapping": [5.0, 0.0],
    "attn_logit_softcapping": [5.0], "embedding_multiplier": [3.0], "residual_multiplier": [0.3],
    "attention_multiplier": [0.3], "output_multiplier": [2.0], "query_pre_attn_scalar": [3], "lm_head_bias": [True],
    "text_config": [{}], "vision_config": [{}], "per_layer_config": [{}],
}  # fmt: skip
TOGETHER: list[Changes] = [
    {"use_sliding_window": True, "max_window_layers": 1},
    {"use_sliding_window": True, "max_window_layers": 0, "sliding_window": 5},
    {"layer_types": ["sliding_attention", "sliding_attention"], "sliding_window": 3},
]
GENERATION: dict[str, list[Any]] = {
    "suppress_tokens": [[3]], "begin_suppress_tokens": [[3]], "forced_bos_token_id": [3], "forced_eos_token_id": [3],
    "num_beams": [4], "penalty_alpha": [0.6], "repetition_penalty": [1.5], "max_length": [5], "max_new_tokens": [0],
    "cache_implementation": ["static", "no_such", "quantized"], "temperature": [0.0, 0.6], "do_sample": [True],
    "eos_token_id": [[1, 4], None, 99], "pad_token_id": [99], "min_length": [9], "no_repeat_ngram_size": [2],
    "use_cache": [False], "return_dict_in_generate": [True], "output_scores": [True], "num_return_sequences": [3],
    "bad_words_ids": [[[3]]], "guidance_scale": [2.0], "prompt_lookup_num_tokens": [3], "assistant_early_exit": [1],
    "is_assistant": [True], "dola_layers": ["low"], "stop_strings": [["a"]], "no_such": [1], "token_healing": [True],
    "watermarking_config": [{"bias": 2.0}], "exponential_decay_length_penalty": [[1, 1.5]], "compile_config": [{}],
    "decoder_start_token_id": [3], "renormalize_logits": [True], "disable_compile": [True],
}  # fmt: skip


def any_change(rng: random.Random, config: Changes) -> Changes:
    """One field and its new value."""
    way = rng.random()
    if way < 0.35:
        return one_of(rng, VALUES)
    if way < 0.4:
        return rng.choice(TOGETHER)
    if way < 0.6 and "rope_parameters" in config:
        rope = rng.choice(ROPES)
        if rng.random() < 0.3:
            return {"rope_parameters": None, "rope_scaling": rope}
        return {"rope_parameters": {"rope_theta": 10000.0} | rope}
    key = rng.choice(sorted(config.keys() - OF_NO_EFFECT))
    return {key: another(rng, key, config[key])}


def one_of(rng: random.Random, values: dict[str, list[Any]]) -> Changes:
    key = rng.choice(sorted(values))
    return {key: rng.choice(values[key])}


def another(rng: random.Random, key: str, value: Any) -> Any:
    """A value that is not this one, mostly of its type."""
    if "act" in key and isinstance(value, str):
        return rng.choice(ACTIVATIONS)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice([value + 1, value * 2, max(1, value // 2), 0, 1, -1, None, float(value)])
    if isinstance(value, float):
        return rng.choice([value * 2 + 0.25, value / 3, 0.0, 1.0, 1e-12, 30.0, None, 1])
    if isinstance(value, list):
        return rng.choice([value[:1], value[::-1], [*value, *value], [], None])
    return rng.choice([None, 2, 1.0, True, "no_such"])
