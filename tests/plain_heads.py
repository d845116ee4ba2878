"""The plainest heads, for tests that say what they need: last state, base's output matrix, whole vocabulary."""

from typing import Any

from euryale.heads.config import HeadsConfig

_PLAIN: dict[str, Any] = {
    "output": "shared", "vocab_share": 1.0, "vocab_min": 0, "features": "last", "residual": True, "induction": 0,
}  # fmt: skip


def plain_heads(kind: str = "hydra", **changes: Any) -> HeadsConfig:
    """A design in which only `changes` differ from the plainest one."""
    return HeadsConfig(kind, **(_PLAIN | changes))
