"""What a program has set as torch's defaults, for its own models, changes no number of decoding."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from random_models import EAGLE_DESIGNS, FULL, HEAD_DESIGNS, random_base, random_heads

from euryale.base import choose_forward
from euryale.base.base import Base
from euryale.decoding.config import AcceptConfig, TreeConfig
from euryale.decoding.engine import Engine
from euryale.errors import UserError
from euryale.heads.heads import Heads

PROMPTS = [[1, 2, 3], [4]]
KNOBS = {"top_p": 0.9, "top_k": 20, "min_p": 0.01, "repetition_penalty": 1.1, "presence_penalty": 0.2,
         "frequency_penalty": 0.2, "logit_bias": {3: 0.1}, "banned_tokens": [5], "min_new_tokens": 3}  # fmt: skip
DESIGNS = {"hydra": HEAD_DESIGNS[0], "induction": HEAD_DESIGNS[-1], "eagle": EAGLE_DESIGNS[0]}
ENGINES: dict[str, Callable[[Base, dict[str, Heads]], Engine]] = {
    "fixed": lambda base, heads: Engine(base, heads["hydra"], "heads", FULL),
    "dynamic": lambda base, heads: Engine(base, heads["induction"], "heads", TreeConfig("dynamic", 7)),
    "eagle": lambda base, heads: Engine(base, heads["eagle"], "eagle", TreeConfig("dynamic", 7)),
    "rejection": lambda base, heads: Engine(
        base, heads["hydra"], "heads", FULL, accept=AcceptConfig("rejection", coupled=False)
    ),
    "typical": lambda base, heads: Engine(base, heads["hydra"], "heads", FULL, accept=AcceptConfig("typical")),
    "lookup": lambda base, heads: Engine(base, drafter="lookup"),
    "lookahead": lambda base, heads: Engine(base, drafter="lookahead"),
    "none": lambda base, heads: Engine(base, drafter="none"),
}


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def parts() -> tuple[Base, dict[str, Heads]]:
    base = random_base(vocab_size=40, seed=3)
    return base, {name: random_heads(design, base) for name, design in DESIGNS.items()}


def texts(base: Base, heads: dict[str, Heads], name: str) -> list[list[int]]:
    """Of an engine that is made here, greedy, sampled and with all knobs."""
    engine = ENGINES[name](base, heads)
    settings: list[dict] = [{}, {"temperature": 0.9, "seed": 3}]
    if name not in ("rejection", "typical"):
        settings.append({"temperature": 0.9, "seed": 3, **KNOBS})
    return [answer.ids for chosen in settings for answer in engine.generate(PROMPTS, 16, **chosen)]


@pytest.mark.parametrize("forward", ["compiled", "fast", "transformers"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=["bfloat16", "float64"])
def test_a_default_dtype_changes_no_text(dtype: torch.dtype, forward: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if forward != "compiled":
        monkeypatch.setattr(choose_forward, "_compiled", lambda *_: None)
    if forward == "transformers":
        monkeypatch.setattr(choose_forward, "fast_forward", lambda *_: None)
    for name in ENGINES:
        expected = texts(*parts(), name)
        base, heads = parts()
        with default_dtype(dtype):
            assert texts(base, heads, name) == expected, name


def test_a_default_device_elsewhere_is_refused() -> None:
    base, heads = parts()
    engine = ENGINES["fixed"](base, heads)
    with torch.device("meta"):
        for call in (lambda: engine.generate(PROMPTS, 4), lambda: Engine(base, drafter="none")):
            with pytest.raises(UserError, match="torch's default device must be cpu.*; got meta"):
                call()
    assert engine.generate(PROMPTS, 4)[0].ids
