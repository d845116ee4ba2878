"""Settings that a model's generation_config.json proposes, and that are not taken over: an answer is made by the
settings of its request alone, so that one command gives one text whatever base it is given."""

import logging

from transformers import GenerationConfig

# Those that change a text. Ends of text (eos_token_id) are taken over.
_CHANGE_TEXT = (
    "temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "repetition_penalty",
    "encoder_repetition_penalty", "no_repeat_ngram_size", "num_beams", "penalty_alpha", "length_penalty",
    "bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "sequence_bias", "forced_bos_token_id",
    "forced_eos_token_id", "min_length", "min_new_tokens", "stop_strings", "exponential_decay_length_penalty",
    "guidance_scale", "watermarking_config", "dola_layers", "constraints", "force_words_ids",
)  # fmt: skip
log = logging.getLogger(__name__)


def tell_left_out(config: GenerationConfig | None, asked: str) -> None:
    """One log line with what the model proposes and nobody has asked for."""
    given = {} if config is None else config.to_diff_dict()
    if proposed := [f"{name}={given[name]}" for name in _CHANGE_TEXT if given.get(name) is not None]:
        log.info(
            "base %s: generation_config.json proposes %s, which is not applied unless a request asks for it",
            asked, ", ".join(proposed),
        )  # fmt: skip
