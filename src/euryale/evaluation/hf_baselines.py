"""transformers' `generate` with the same weights, as a baseline.

The other contenders of a benchmark run on the very model that the engine uses: same tensors, dtype, device and
threads. For their turn the model gets back transformers' own attention and a generation config that does nothing
beyond what was asked (a model's own may penalise repetition or cut the vocabulary, which would be another text).
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import torch
from transformers import GenerationConfig, PreTrainedModel

from euryale.base.base import Base
from euryale.decoding.sampling import Sampling

log = logging.getLogger(__name__)


@contextmanager
def transformers_attention(base: Base) -> Iterator[PreTrainedModel]:
    """Lends the model to transformers: its fastest portable attention and a clean generation config."""
    model = base.model
    attention, generation_config = model.config._attn_implementation, model.generation_config
    model.set_attn_implementation("sdpa")
    # `generate` fills every unset field of the config it is given from the model's own.
    model.generation_config = GenerationConfig()
    try:
        yield model
    finally:
        model.generation_config = generation_config
        model.set_attn_implementation(attention)


def generation_settings(base: Base, sampling: Sampling, max_new_tokens: int, **extra: object) -> GenerationConfig:
    """What `generate` is told: greedy at T = 0, else sampling; from the same distribution as ours."""
    assert sampling.is_known_to_transformers, sampling
    if base.quantization == "int4":
        _tell_other_weights(str(base.dtype).removeprefix("torch."))
    eos_ids = list(base.eos_ids)
    settings: dict[str, object] = {"do_sample": False}
    if sampling.temperature > 0:
        settings = {name: getattr(sampling, name) for name in ("temperature", "top_p", "top_k")} | {"do_sample": True}
        settings |= {"min_p": sampling.min_p} if sampling.min_p else {}
    if sampling.repetition_penalty != 1.0:
        settings["repetition_penalty"] = sampling.repetition_penalty
    if sampling.logit_bias:
        settings["sequence_bias"] = [[[token], float(bias)] for token, bias in sampling.logit_bias.items()]
    if sampling.banned_tokens:
        # As bad_words_ids it would ignore a ban of an end token, and write it.
        words = sampling.banned_words()
        settings["suppress_tokens"] = [word[0] for word in words if len(word) == 1] or None
        settings["bad_words_ids"] = [list(word) for word in words if len(word) > 1] or None
    if sampling.min_new_tokens:
        settings["min_new_tokens"] = sampling.min_new_tokens
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        eos_token_id=eos_ids or None,
        pad_token_id=eos_ids[0] if eos_ids else 0,  # never seen: one prompt at a time
        **settings,
        **extra,
    )


@cache
def _tell_other_weights(dtype: str) -> None:
    """Once a process: what is compared is not the same base."""
    log.info("base.quantization=int4: HF generate reads the weights in %s, so that its text is another base's", dtype)


@torch.inference_mode()
def generate_ids(model: PreTrainedModel, prompt: Sequence[int], settings: GenerationConfig) -> list[int]:
    """`generate` for one prompt: token ids in, prompt and answer out, on the host (so the device has finished)."""
    ids_1T = torch.tensor([list(prompt)], device=model.device)
    answer_1T = model.generate(ids_1T, attention_mask=torch.ones_like(ids_1T), generation_config=settings)
    return answer_1T[0].tolist()


def count_new(ids: Sequence[int], num_prompt: int, eos_ids: Sequence[int], max_new_tokens: int) -> list[int]:
    """The answer in `ids`, by the one rule for every contender: up to its first end-of-text id, that included."""
    new = list(ids[num_prompt : num_prompt + max_new_tokens])
    ends = [place for place, token in enumerate(new) if token in eos_ids]
    return new[: ends[0] + 1] if ends else new
