"""Model families that the engine reproduces, decided from the config alone, before any weights are read.

A family is a `model_type` of transformers. One is supported if drafted, batched and plain decoding give the text of
transformers' own greedy decoding; tests/families_table.py compares them and writes docs/families.md. A supported
family can still be configured to do what a tree cannot follow, so the config is searched for that too.
"""

import logging

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig

from euryale.base.config_check import check_numbers, ropes_of, window_of
from euryale.base.logit_scale import can_move
from euryale.errors import UserError

_COMPARED = """
    afmoe apertus arcee aria_text biogpt bitnet cohere cohere2 cohere2_moe ctrl cwm diffllama dots1 ernie4_5
    ernie4_5_moe exaone4 exaone_moe flex_olmo gemma gemma2 gemma3_text glm glm4 glm4_moe gpt-sw3 gpt2
    gpt_bigcode gpt_neox granite granitemoe granitemoeshared helium hunyuan_v1_dense hunyuan_v1_moe hy_v3
    hyperclovax internlm3 iquestcoder jais2 jetmoe kolibri1 laguna llama mellum minimax_m2 ministral ministral3
    mistral mixtral nanochat nemotron olmo olmo2 olmo3 olmoe opt persimmon phi phi3 phimoe qwen2 qwen2_moe qwen3
    qwen3_moe seed_oss smollm3 solar_open stablelm starcoder2 vaultgemma
"""
SUPPORTED = frozenset(_COMPARED.split())

_RECURRENT = "a recurrent or convolutional state, which cannot go back to before a rejected token"
_LATENT = "latent attention (MLA), whose keys and values differ in width"
_INDEXED = "an indexer, which lets every query choose its keys among all tokens of the pass"
_ALIBI = "ALiBi, which adds a bias by the place in the cache, not by the position in the text"
_SEQ2SEQ = "the decoder of an encoder-decoder"

# What the families do that are known and not supported, whatever their config says.
_NOT_SUPPORTED = {
    _RECURRENT: """
        bailing_hybrid bamba falcon_h1 falcon_mamba granitemoehybrid jamba kimi_linear lfm2 lfm2_moe lfm3 mamba mamba2
        minimax nemotron_h olmo_hybrid qwen3_5_moe_text qwen3_5_text qwen3_next qwen4_exp_text recurrent_gemma rwkv
        xlstm zamba zamba2 zaya
    """,
    _LATENT: "axk1 axk2 deepseek_v2 deepseek_v3 glm4_moe_lite longcat_flash minicpm3 youtu",
    _INDEXED: "deepseek_v32 deepseek_v4 glm_moe_dsa minimax_m3_vl_text",
    "an attention of its own, which takes no mask of a tree": """
        codegen cpmant dbrx falcon gpt_neo gpt_neox_japanese gptj openai-gpt reformer xglm xlm xlnet
    """,
    _ALIBI: "bloom mpt",
    "an encoder's layers, which are not made to write text from left to right": """
        bert bert-generation big_bird camembert data2vec-text electra ernie megatron-bert modernbert-decoder rembert
        roberta roberta-prelayernorm roc_bert roformer xlm-roberta xlm-roberta-xl xmod
    """,
    _SEQ2SEQ: """
        bart bigbird_pegasus blenderbot blenderbot-small marian mbart musicgen musicgen_melody mvp pegasus plbart
        prophetnet trocr whisper
    """,
    "attention sinks": "flint gpt_oss granite_swa granitemoe_swa",
    "images or sound among its tokens": "git moshi phi4_multimodal",
    "patches of bytes, which models of its own cut": "blt",
    "a mask that drops the keys of lowest score, counted over all tokens of the pass": "doge",
    "layers that are run several times over, each time with a cache of their own": "hrm_text",
    "chunked attention": "llama4_text",
    "keys and values that differ in width": "mimo_v2_flash",
}
_REASONS = {family: feature for feature, families in _NOT_SUPPORTED.items() for family in families.split()}

# Keys of a config that change logits or scores, with the value that changes nothing. transformers applies the first
# two after the output matrix, where heads, which share the matrix, would not see them.
_NEUTRAL: dict[str, tuple[float, str]] = {
    "final_logit_softcapping": (0.0, "capped logits"),
    "lm_head_multiplier": (1.0, "scaled logits"),
    "attn_logit_softcapping": (0.0, "capped attention scores"),
    "kv_lora_rank": (0.0, _LATENT),
    "index_topk": (0.0, _INDEXED),
    "attention_chunk_size": (0.0, "chunked attention"),
    "num_kv_shared_layers": (0.0, "layers that share the keys and values of others"),
    "use_bidirectional_attention": (0.0, "attention to later tokens"),
}
_SCALES = ("logits_scaling", "logit_scale")  # moved into the output matrix where that rounds nothing
_LAYERS = {
    "chunked_attention": "chunked attention",
    "indexed_attention": _INDEXED,
    "linear_attention": _RECURRENT,
    "conv": _RECURRENT,
    "hybrid": _RECURRENT,
}
_PLAIN_LAYERS = ("full_attention", "sliding_attention")
_STATIC_ROPES = ("default", "linear", "llama3", "yarn", "proportional")
_GROWING_ROPES = ("dynamic", "longrope")  # their frequencies change once a pass is longer than the training was
log = logging.getLogger(__name__)


def check_family(config: PreTrainedConfig, asked: str) -> None:
    """Raises UserError, in one line, for a family that cannot be reproduced (with the feature and the model type), and
    for numbers that no model can have (with the field)."""
    if feature := refused_feature(config):
        raise UserError(
            f"base.path={asked}: model_type={config.model_type} is not supported: it has {feature}. "
            "docs/families.md lists what works (Llama, Mistral, Qwen2, Qwen3 and others)."
        )
    check_numbers(config, asked)
    if (length := context_length(config)) < (positions := int(config.max_position_embeddings)):
        log.info(
            "base %s: the context ends at %d tokens of %d: %s", asked, length, positions,
            "its rope changes beyond" if _rope_limit(config) == length else "its attention has a sliding window",
        )  # fmt: skip


def refused_feature(config: PreTrainedConfig) -> str | None:
    """What the model does that trees and heads cannot follow, as the object of `has`; None: nothing."""
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return "no causal language model in transformers"
    if feature := _REASONS.get(config.model_type):
        return feature
    if getattr(config, "is_encoder_decoder", False):
        return _SEQ2SEQ
    if config.get_text_config() is not config:
        return "its text model inside a model of images or sound. Give a text model alone"
    if feature := _feature(config):
        return feature
    if config.model_type not in SUPPORTED:
        return "not been compared with transformers' own decoding"
    if not getattr(config, "max_position_embeddings", None):
        return "no length of context (max_position_embeddings) in its config"
    return None


def _feature(config: PreTrainedConfig) -> str | None:
    if getattr(config, "is_heterogeneous", False):  # transformers 5.2x
        return "layers of different shapes (per_layer_config)"
    for layer in dict.fromkeys(getattr(config, "layer_types", None) or ()):
        if layer not in _PLAIN_LAYERS:
            return _LAYERS.get(layer, f"layers of the type {layer}")
    for key, (neutral, feature) in _NEUTRAL.items():
        value = getattr(config, key, None)
        if value is not None and value != neutral:
            return f"{feature} ({key}={value})"
    for key in _SCALES:
        value = getattr(config, key, None)
        if value is not None and not can_move(value):
            return f"scaled logits, by a factor that is no power of two ({key}={value})"
    if getattr(config, "alibi", False):
        return _ALIBI
    for rope in ropes_of(config):
        kind = rope.get("rope_type", "default")
        if kind not in _STATIC_ROPES + _GROWING_ROPES:
            return f"a rope of the type {kind}"
    return None


def context_length(config: PreTrainedConfig) -> int:
    """Tokens of context of a supported family: positions, cut where plain and drafted passes would begin to differ.

    Beyond a sliding window keys would have to be forgotten. Beyond the length of its training, a rope that grows
    changes the frequencies of every token in the pass.
    """
    text = config.get_text_config()
    positions = max(int(text.max_position_embeddings), _scaled_positions(text))
    limits = (positions, window_of(text), _rope_limit(text))
    return min(limit for limit in limits if limit)


def _rope_limit(config: PreTrainedConfig) -> int | None:
    """Tokens up to which the frequencies of a rope that grows stay as they are; None: for ever."""
    limits = [
        _number(rope, "original_max_position_embeddings", config) if rope["rope_type"] == "longrope"
        # Dynamic rope counts from the config's own number of positions, whatever else is said.
        else int(config.max_position_embeddings)
        for rope in ropes_of(config)
        if rope.get("rope_type") in _GROWING_ROPES
    ]  # fmt: skip
    return min(limits, default=None)


def _scaled_positions(config: PreTrainedConfig) -> int:
    """Tokens that a stretched rope reaches: its factor times the length of training. Llama 3 gives the product itself,
    and many with YaRN do; the others give the length of training (Qwen2.5, Vicuna)."""
    return max(
        (
            int(_number(rope, "original_max_position_embeddings", config) * float(str(rope["factor"])))
            for rope in ropes_of(config)
            if rope.get("rope_type") in ("linear", "yarn") and rope.get("factor")
        ),
        default=0,
    )


def _number(rope: dict[str, object], key: str, config: PreTrainedConfig) -> int:
    value = rope.get(key) or config.max_position_embeddings
    return int(str(value))
