"""Values on a command line that Hydra's grammar takes for something else: read as the text that was typed.

A case names who met its fault first; "own" is ours.
"""

from __future__ import annotations

import pytest
from test_overrides import as_hydra_reads

from euryale.cli.overrides import quote_names
from euryale.cli.schemas import SCHEMAS
from euryale.cli.script import _can_read

# A path, a name, a file.
TEXTS = [
    ("base.path", "~/models/llama"),  # a shell leaves ~ alone after a dot
    ("base.path", "it's"),
    ("base.path", "a[1]"),
    ("base.path", "model (2)"),
    ("base.path", "a=b"),
    ("base.path", "a#b"),
    ("base.path", "\u4f60\u597d"),
    ("base.path", "a{b}"),
    ("base.revision", "1e5"),  # a commit that looks like a number
    ("base.revision", "00123_4"),
    ("name", "2026_11_28"),
    ("name", "1_000"),
    ("name", "true"),
    ("name", "nan"),
    ("name", ".5"),
    ("data.files", "~/texts.jsonl"),
    ("data.files", "a(1).jsonl"),
    ("output", "runs/\u00e4"),
]


@pytest.mark.parametrize(("key", "text"), TEXTS, ids=[f"{key}={text}" for key, text in TEXTS])
def test_a_text_arrives_as_it_was_typed(key: str, text: str) -> None:
    """name=2026_11_28 was a run of the name 20261128."""
    [quoted] = quote_names([f"{key}={text}"], SCHEMAS["train"], _can_read)
    assert as_hydra_reads(quoted.replace(key, "key", 1)) == text


LEFT = [
    "base.path=null", "base.path=", "base.path='a,b'", 'base.path="a"', "base.path=a", "name=a,b", "seed=1_000",
    "no=1e5", "optim.lr=1e-3", "data.files=[a.jsonl,b.jsonl]", "data.files=[a=b]", "heads.width=range(1", "base=hf",
    "-m", "~name", "hydra.run.dir=1", "base.path=${oc.env:HOME}",
]  # fmt: skip


@pytest.mark.parametrize("argument", LEFT)
def test_what_is_no_text_is_left_to_hydra(argument: str) -> None:
    assert quote_names([argument], SCHEMAS["train"], _can_read) == [argument]
