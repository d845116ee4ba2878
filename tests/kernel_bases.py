"""Tiny random bases that decode through the kernel forward. Not a test file itself."""

from __future__ import annotations

from random_models import FAMILIES, random_base

from euryale.base.base import Base
from euryale.base.choose_forward import ForwardSettings

# Every kernel takes a head width of 16. One of the families has a window, which ends its context.
SIZES: dict[str, dict[str, object]] = {family: {"head_dim": 16} for family in FAMILIES}
SIZES["mistral"] |= {"sliding_window": 64}


def kernel_base(family: str, backend: str, seed: int = 5, **config: object) -> Base:
    """The forward of the backend over a random base of this family."""
    return with_backend(random_base(family, 29, seed, **(SIZES[family] | config)), backend)  # type: ignore[arg-type]


def with_backend(base: Base, backend: str, nf4_runtime: str = "auto", forward: str = "auto") -> Base:
    """The same model, decoded through another backend; `auto` is the CPU's own forward."""
    settings = ForwardSettings(forward, backend, nf4_runtime)
    return Base(base.model, base.tokenizer, base.path, base.fingerprint, base.quantization, settings)
