"""Numbers of a config that no model can have, told by their names before anything is built from them; and leftovers."""

from collections.abc import Iterator

from transformers import PreTrainedConfig

from euryale.errors import UserError

# A text needs a token to begin with and one to write.
_LEAST = {"vocab_size": 1, "hidden_size": 1, "num_hidden_layers": 1, "num_attention_heads": 1,
          "max_position_embeddings": 2, "word_embed_proj_dim": 1}  # fmt: skip


def check_numbers(config: PreTrainedConfig, asked: str) -> None:
    """Raises UserError, in one line with the field."""
    for problem in _problems(config):
        raise UserError(
            f"base.path={asked}: config.json has {problem}. Correct it, or copy the model again from where it came."
        )


def _problems(config: PreTrainedConfig) -> Iterator[str]:
    for name, least in _LEAST.items():
        value = getattr(config, name, None)
        if value is not None and (not isinstance(value, int) or value < least):
            yield f"{name}={value}, which must be a whole number of at least {least}"
    heads, groups = config.num_attention_heads, getattr(config, "num_key_value_heads", None)
    # In a config of another family it is a leftover that is not read.
    if hasattr(type(config), "num_key_value_heads") and groups is not None and (groups < 1 or heads % groups):
        yield f"num_key_value_heads={groups}, which must divide num_attention_heads={heads}"
    if (window := window_of(config)) is not None and window < 1:
        yield f"sliding_window={window}, which must be at least 1, or null for none"
    for rope in ropes_of(config):
        for name in ("rope_theta", "factor"):
            value = rope.get(name)
            if value is not None and not (isinstance(value, (int, float)) and 0 < value < float("inf")):
                yield f"{name}={value!r} among its rope_parameters, which must be a number above 0"


def settle_leftovers(config: PreTrainedConfig) -> None:
    """Takes out of a config what another program wrote into it, and what could only keep the model from being built:
    an attention that may not be installed, and a padding token without a row of its own. Neither changes a text."""
    if config._attn_implementation not in (None, "eager", "sdpa"):
        config._attn_implementation = None
    pad = getattr(config, "pad_token_id", None)
    if pad is not None and not 0 <= pad < config.vocab_size:
        config.pad_token_id = None
    config.return_dict = True


def window_of(config: PreTrainedConfig) -> int | None:
    """Tokens of the sliding window, where a layer has one. In a family without it transformers' cache forgets by it all
    the same."""
    layers = getattr(config, "layer_types", None)
    if layers and "sliding_attention" not in layers:
        return None
    return getattr(config, "sliding_window", None)


def ropes_of(config: PreTrainedConfig) -> list[dict[str, object]]:
    """The settings of rotary positions: one for all layers, or one for each type of layer."""
    rope = getattr(config, "rope_parameters", None) or {}
    nested = [part for part in rope.values() if isinstance(part, dict)]
    return nested or [rope]
