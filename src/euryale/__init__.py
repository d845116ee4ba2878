"""Euryale: train Medusa heads on your own frozen Llama, and decode with them, losslessly."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from euryale.base.base import load_base as load_base
    from euryale.decoding.engine import Engine as Engine
    from euryale.decoding.request import Generation as Generation
    from euryale.decoding.request import Request as Request
    from euryale.decoding.sampling import Sampling as Sampling
    from euryale.decoding.scheduler import Scheduler as Scheduler
    from euryale.decoding.tree.tree import Tree as Tree
    from euryale.errors import UserError as UserError
    from euryale.heads.checkpoint import load_heads as load_heads

__version__ = "0.1.0"

_HOMES = {
    "Engine": "euryale.decoding.engine",
    "Generation": "euryale.decoding.request",
    "Request": "euryale.decoding.request",
    "Sampling": "euryale.decoding.sampling",
    "Scheduler": "euryale.decoding.scheduler",
    "Tree": "euryale.decoding.tree.tree",
    "UserError": "euryale.errors",
    "load_base": "euryale.base.base",
    "load_heads": "euryale.heads.checkpoint",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> object:
    """Imports a public name when it is first asked for: `import euryale` alone stays free of torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'euryale' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
