"""What an infer script refuses while it opens an engine."""

from pathlib import Path

import pytest

from euryale.base.config import BaseConfig
from euryale.cli.open_engine import open_base
from euryale.errors import UserError


def test_a_base_that_was_moved_since_the_heads_were_trained_is_asked_for(tmp_path: Path) -> None:
    description = {"base": {"path": str(tmp_path / "moved")}, "dtype": "float32"}
    with pytest.raises(UserError, match="moved, is not there any more. Give the place where it is now: base.path="):
        open_base(BaseConfig(path=None, device="cpu"), description)
