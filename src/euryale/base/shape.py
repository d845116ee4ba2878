"""Sizes of a base, whose weights need not be there.

Memory and speed of training depend on the sizes of a base, not on what it has learned: they can be measured before
anything large is downloaded. The sizes stand in conf/shape, or in the config.json of a folder or hub id (a few KB).
"""

from transformers import AutoConfig, PreTrainedConfig

from euryale.base.config import BaseConfig, ShapeConfig
from euryale.base.locate import read_config


def config_of_shape(shape: ShapeConfig, base: BaseConfig) -> PreTrainedConfig:
    """What transformers builds a model of these sizes from. Raises UserError as `check` and `read_config` do."""
    shape.check()
    if shape.family is None:
        return read_config(base, is_whole=False)
    head_dim = {} if shape.head_dim is None else {"head_dim": shape.head_dim}
    return AutoConfig.for_model(
        shape.family,
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        max_position_embeddings=shape.max_length,
        tie_word_embeddings=shape.tied,
        sliding_window=None,
        dtype="bfloat16",
        **head_dim,
    )
