"""Random configs of the supported families: each is reproduced, or refused at load in one line.

    python tests/fuzz_configs.py 500 0              500 configs from seed 0; what is wrong is printed and exits with 1
    python tests/fuzz_configs.py 500 0 llama gpt2   of these families alone

A config is the tiny one of tiny_families.py with one to three of its fields changed: flags turned, numbers off by one,
doubled, zero or missing, activations and ropes exchanged, layers of other kinds, leftovers of other models. What
transformers makes of it is the reference: its own greedy text, or its own failure, which must be a UserError of ours.
Not a test file itself.
"""

from __future__ import annotations

import contextlib
import json
import logging
import random
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from random_models import HEAD_DESIGNS, letter_tokenizer, random_heads, random_tree
from tiny_families import random_model, tiny_config
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from euryale.base.base import Base, load_base
from euryale.base.config import BaseConfig
from euryale.base.config_check import settle_leftovers
from euryale.base.families import SUPPORTED
from euryale.decoding.engine import Engine
from euryale.errors import UserError

Changes = dict[str, Any]
_NEW_TOKENS = 10
_PROMPTS = ([5, 1, 7, 7, 2, 0, 3], [3, 4])
_ACTIVATIONS = (
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
_OF_NO_EFFECT = {
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


class Outcome(NamedTuple):
    """What became of one config: `equal`, `refused`, or what is wrong with it."""

    kind: str
    detail: str = ""


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
    key = rng.choice(sorted(config.keys() - _OF_NO_EFFECT))
    return {key: another(rng, key, config[key])}


def one_of(rng: random.Random, values: dict[str, list[Any]]) -> Changes:
    key = rng.choice(sorted(values))
    return {key: rng.choice(values[key])}


def another(rng: random.Random, key: str, value: Any) -> Any:
    """A value that is not this one, mostly of its type."""
    if "act" in key and isinstance(value, str):
        return rng.choice(_ACTIVATIONS)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice([value + 1, value * 2, max(1, value // 2), 0, 1, -1, None, float(value)])
    if isinstance(value, float):
        return rng.choice([value * 2 + 0.25, value / 3, 0.0, 1.0, 1e-12, 30.0, None, 1])
    if isinstance(value, list):
        return rng.choice([value[:1], value[::-1], [*value, *value], [], None])
    return rng.choice([None, 2, 1.0, True, "no_such"])


def save_case(family: str, changes: Changes, generation: Changes, folder: Path) -> PreTrainedModel | None:
    """A folder with this config, and the random model that it describes; None: transformers makes none of it."""
    config = tiny_config(family)
    raw = json.loads(config.to_json_string(use_diff=False)) | {"architectures": ["AnyForCausalLM"]} | changes
    written = json.dumps(raw)
    model = None
    (folder / "config.json").write_text(written)
    # Whatever transformers raises is for what it does not take: the product is to refuse it.
    with contextlib.suppress(Exception):
        read = AutoConfig.from_pretrained(folder)
        settle_leftovers(read)
        model = random_model(read)
    try:
        (model or random_model(config)).save_pretrained(folder)
        (folder / "config.json").write_text(written)
        if model is not None:
            how: Changes = {"config": read, "dtype": torch.float32, "attn_implementation": "eager"}
            model = AutoModelForCausalLM.from_pretrained(folder, **how)
    except Exception:
        model = None
    (folder / "config.json").write_text(written)
    letter_tokenizer(40).save_pretrained(folder)
    if generation:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return model


@torch.inference_mode()
def greedy(model: PreTrainedModel, prompt: list[int], eos_ids: tuple[int, ...], length: int) -> list[int]:
    """transformers' own greedy text, without what its generation config would do to it."""
    model.generation_config = GenerationConfig()
    num = min(_NEW_TOKENS, length - len(prompt))
    try:
        return generated(model, prompt, eos_ids, num)
    except Exception:  # its cache and its eager attention do not take every config: the whole text again for each token
        model.set_attn_implementation("sdpa")
        ids = list(prompt)
        while len(ids) < len(prompt) + num and not (len(ids) > len(prompt) and ids[-1] in eos_ids):
            logits_1TV = model(input_ids=torch.tensor([ids]), use_cache=False, return_dict=True).logits
            ids.append(int(logits_1TV[0, -1].argmax()))
        return ids[len(prompt) :]


def generated(model: PreTrainedModel, prompt: list[int], eos_ids: tuple[int, ...], num: int) -> list[int]:
    ids_1T = torch.tensor([prompt])
    out = model.generate(
        ids_1T,
        attention_mask=torch.ones_like(ids_1T),
        do_sample=False,
        use_cache=True,
        max_new_tokens=num,
        eos_token_id=list(eos_ids),
        pad_token_id=0,
    )
    ids = out if isinstance(out, torch.Tensor) else out.sequences
    return ids[0, len(prompt) :].tolist()


@torch.inference_mode()
def gap(model: PreTrainedModel, ids: list[int]) -> float:
    """Between the two best logits, relative to their spread."""
    logits_V = model(input_ids=torch.tensor([ids]), use_cache=False, return_dict=True).logits[0, -1]
    best = logits_V.topk(2).values
    return float((best[0] - best[1]) / logits_V.std().clamp(min=1e-9))


def engines(base: Base, rng: random.Random) -> Iterator[tuple[str, Engine]]:
    yield "none", Engine(base, drafter="none")
    heads = random_heads(HEAD_DESIGNS[0], base)
    yield "heads", Engine(base, heads, "heads", random_tree(rng, heads.num_heads, 4, 12))
    yield "lookahead", Engine(base, drafter="lookahead")


def check_case(family: str, changes: Changes, generation: Changes, seed: int = 0) -> Outcome:
    """What becomes of this config."""
    with tempfile.TemporaryDirectory() as name, quiet():
        model = save_case(family, changes, generation, Path(name))
        try:
            base = load_base(BaseConfig(path=name, dtype="float32", device="cpu"))
        except UserError as error:
            message = str(error).replace(name, "FOLDER")
            return Outcome("more than one line" if "\n" in message else "refused", message)
        except Exception:
            return Outcome("a traceback at load", traceback.format_exc(limit=-3))
        prompts = [[token % base.vocab_size for token in prompt][: base.max_length - 1] for prompt in _PROMPTS]
        try:
            assert model is not None, "from_pretrained failed"
            expected = [greedy(model, prompt, base.eos_ids, base.max_length) for prompt in prompts]
        except Exception:
            return Outcome("let in, and transformers fails", traceback.format_exc(limit=-2))
        try:
            return compared(base, model, prompts, expected, random.Random(seed))
        except UserError as error:
            return Outcome("refused after loading", str(error))
        except Exception:
            return Outcome("a traceback in decoding", traceback.format_exc(limit=-3))


def compared(
    base: Base, model: PreTrainedModel, prompts: list[list[int]], expected: list[list[int]], rng: random.Random
) -> Outcome:
    for way, engine in engines(base, rng):
        found = [answer.ids for answer in engine.generate(prompts, _NEW_TOKENS)]
        for prompt, wanted, ids in zip(prompts, expected, found, strict=True):
            if ids != wanted and not is_near_tie(model, prompt, wanted, ids):
                return Outcome("another text", f"{way}: {ids} for {wanted}")
    return Outcome("equal")


def is_near_tie(model: PreTrainedModel, prompt: list[int], wanted: list[int], found: list[int]) -> bool:
    """Whether the two part where two logits are equal but for rounding."""
    places = [place for place, (a, b) in enumerate(zip(wanted, found, strict=False)) if a != b]
    return bool(places) and gap(model, prompt + wanted[: places[0]]) < 1e-4


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    transformers.logging.set_verbosity(level)


def main(num: int, seed: int, families: list[str]) -> None:
    kinds: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    for number in range(num):
        rng = random.Random(f"{seed} {number}")
        family = rng.choice(families)
        config = tiny_config(family).to_dict()
        changes: Changes = {}
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            changes |= any_change(rng, config)
        generation = one_of(rng, GENERATION) if rng.random() < 0.15 else {}
        outcome = check_case(family, changes, generation, number)
        kinds[outcome.kind] += 1
        if outcome.kind == "refused":
            refused[outcome.detail] += 1
        elif outcome.kind != "equal":
            print(f"{family} {changes} {generation}: {outcome.kind}: {outcome.detail}\n", flush=True)
    for message, times in refused.most_common():
        print(f"{times} x {message}")
    print(dict(kinds))
    sys.exit(bool(kinds.keys() - {"equal", "refused"}))


if __name__ == "__main__":
    with quiet():
        main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:] or sorted(SUPPORTED))
