"""Sizes of a base, whose weights need not be there.

Memory and speed of training depend on the sizes of a base, not on what it has learned: they can be measured before
anything large is downloaded. The sizes stand in conf/shape, or in the config.json of a folder or hub id (a few KB).
"""

from dataclasses import asdict, dataclass

from transformers import AutoConfig, PreTrainedConfig

from euryale.base.config import BaseConfig
from euryale.base.fast_llama import FAMILIES
from euryale.base.locate import read_config
from euryale.errors import UserError, check_least, check_option

_OPTIONAL = ("head_dim",)  # hidden_size / num_heads when it is not given


@dataclass
class ShapeConfig:
    """Sizes as conf/shape gives them; all null: those of base.path."""

    family: str | None = None
    vocab_size: int | None = None
    hidden_size: int | None = None
    intermediate_size: int | None = None
    num_layers: int | None = None
    num_heads: int | None = None
    num_kv_heads: int | None = None
    head_dim: int | None = None
    max_length: int | None = None
    tied: bool | None = None

    def check(self) -> None:
        """Raises UserError for sizes that no base of the family has, or that are given in part."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        if not given:
            return
        missing = [name for name in asdict(self) if name not in given and name not in _OPTIONAL]
        if missing:
            raise UserError(
                f"shape.{next(iter(given))} is given and {', '.join(f'shape.{name}' for name in missing)} not: sizes "
                "are given whole, or not at all (then base.path's config.json says them). Choose a shape=... to begin "
                "with."
            )
        check_option("shape.family", self.family, FAMILIES)
        check_least(1, "shape.", **{name: value for name, value in given.items() if name not in ("family", "tied")})
        assert self.hidden_size and self.num_heads and self.num_kv_heads
        if self.head_dim is None and self.hidden_size % (2 * self.num_heads) or self.num_heads % self.num_kv_heads:
            raise UserError(
                f"shape.hidden_size={self.hidden_size} must be an even multiple of shape.num_heads={self.num_heads} "
                f"(positions turn pairs), and that a multiple of shape.num_kv_heads={self.num_kv_heads}."
            )
        if self.head_dim is not None and self.head_dim % 2:
            raise UserError(f"shape.head_dim must be even (positions turn pairs); got {self.head_dim}.")


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
