"""A tiny random model of every causal language model family of transformers. Not a test file itself.

Each config is made offline from the family's own class: the sizes below under whatever names the class gives them,
and what one family needs in addition. Norms start near one and biases near zero, matrices large, so that greedy answers
are varied and a decoder that is wrong is noticed.
"""

from __future__ import annotations

import inspect
from functools import cache
from pathlib import Path

import torch
from random_models import letter_tokenizer
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCAB = 29
CONTEXT = 64
_SIZES: dict[str, object] = {
    "vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "max_position_embeddings": CONTEXT,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": None, "sliding_window": 48,
    # mixtures of experts
    "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8, "num_experts": 4, "num_local_experts": 4,
    "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
    "first_k_dense_replace": 1,
    # latent attention
    "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 4,
    # older names
    "d_model": 16, "ffn_dim": 24, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 24,
    "encoder_layers": 1, "encoder_attention_heads": 4, "encoder_ffn_dim": 24, "n_embd": 16, "n_layer": 2, "n_head": 4,
    "n_positions": CONTEXT, "n_inner": 24, "dff": 24, "rotary_dim": 4, "word_embed_proj_dim": 16, "is_decoder": True,
    "embedding_size": 16, "num_layers": 2, "num_heads": 4, "state_size": 4,
}  # fmt: skip
# What a family needs in addition: its class would refuse the sizes, or would not do what the family is known for.
_BESIDE: dict[str, dict[str, object]] = {
    "bamba": {"mamba_n_heads": 4, "mamba_d_head": 8},
    "granitemoehybrid": {"mamba_n_heads": 4, "mamba_d_head": 8},
    "mamba2": {"num_heads": 4, "head_dim": 8},
    "xlnet": {"d_head": 4},
    "zamba": {"num_hidden_layers": 3, "layers_block_type": ["linear_attention", "hybrid", "linear_attention"]},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"]},
    "cwm": {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
    "dots3_note_text": {"num_key_value_heads": 4},
    "exaone4": {"sliding_window_pattern": 2},
    "gemma2": {"attn_logit_softcapping": None, "final_logit_softcapping": None},
    "granite": {"logits_scaling": 8.0},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 48},
    "nanochat": {"final_logit_softcapping": None},
    "stablelm": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    "vaultgemma": {"attn_logit_softcapping": None, "final_logit_softcapping": None},
    "modernbert-decoder": {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
    "zaya": {"num_experts_per_tok": 1},
}
_NOT_ALONE = {"gemma4_assistant", "gemma4_unified_assistant"}  # read the keys and values of another model
FAMILIES = tuple(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys() - _NOT_ALONE))


def tiny_config(family: str, **changes: object) -> PreTrainedConfig:
    """The family's config with the sizes above, or its own defaults where its class does not take them."""
    config_class = CONFIG_MAPPING[family]
    renamed = config_class.attribute_map
    names = {*inspect.signature(config_class.__init__).parameters, *renamed}
    settings = {name: value for name, value in _SIZES.items() if name in names}
    for name, own in renamed.items():
        if name in settings:
            settings.pop(own, None)
    return config_class(**settings | _BESIDE.get(family, {}) | changes)


@cache
def tiny_model(family: str) -> PreTrainedModel:
    """The family's model with random weights, in float32; leave it as it is."""
    return random_model(tiny_config(family))


def random_model(config: PreTrainedConfig, seed: int = 0) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.6)
            else:
                torch.nn.init.normal_(parameter, mean=0.0 if name.endswith("bias") else 1.0, std=0.2)
    return model.eval()


def save(model: PreTrainedModel, folder: Path) -> Path:
    """A folder as transformers writes it."""
    model.save_pretrained(folder)
    letter_tokenizer(model.config.get_text_config().vocab_size).save_pretrained(folder)
    return folder


def save_config_alone(config: PreTrainedConfig, folder: Path) -> Path:
    """A folder whose weights cannot be read: what is refused there was refused by its config."""
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"cannot be read")
    letter_tokenizer(VOCAB).save_pretrained(folder)
    return folder
