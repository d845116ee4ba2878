"""What an infer script refuses while it opens an engine."""

from pathlib import Path

import pytest

from euryale.base.config import BaseConfig
from euryale.cli.open_engine import open_base
from euryale.errors import UserError


def test_int4_of_heads_with_an_adapter_is_refused_before_a_base_is_loaded() -> None:
    description: dict = {"dtype": "float32", "adapter": "adapter"}
    for quantization in ("int4", "auto"):
        description["base"] = {"path": "gone", "quantization": "int4"}
        with pytest.raises(UserError, match="must have plain matrices, and these heads .*base.merge_adapter=true"):
            open_base(BaseConfig(path=None, quantization=quantization), description)
    with pytest.raises(UserError, match="gone"):  # merged, it is fine but for the base
        open_base(BaseConfig(path=None, quantization="int4", merge_adapter=True), description)


def test_a_base_that_was_moved_since_the_heads_were_trained_is_asked_for(tmp_path: Path) -> None:
    description = {"base": {"path": str(tmp_path / "moved")}, "dtype": "float32"}
    with pytest.raises(UserError, match="moved, is not there any more. Give the place where it is now: base.path="):
        open_base(BaseConfig(path=None, device="cpu"), description)
