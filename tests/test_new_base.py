"""A base made from nothing is whole: a tokenizer that loses no byte, a model of the shape asked for."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from euryale.base.base import Base, load_base
from euryale.base.config import BaseConfig
from euryale.data.rows import Row
from euryale.decoding.engine import Engine
from euryale.errors import UserError
from euryale.training.config import ScratchConfig
from euryale.training.new_base import make_base

CONFIG = ScratchConfig(
    enabled=True, vocab_size=300, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=4, num_kv_heads=2,
    max_length=64,
)  # fmt: skip
TEXT = (  # long enough for some fifty merges
    "def first(row):\n    return row[0]\n\nclass Row:\n    pass\n\n"
    "import random\nfor number in range(10):\n    print(number)\n"
) * 3


def rows(*texts: str) -> list[Row]:
    return [Row(key=str(number), origin="", text=text) for number, text in enumerate(texts)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scratch") / "initial"
    assert make_base(CONFIG, rows(TEXT), folder, seed=1) == folder
    return folder


@pytest.fixture(scope="module")
def base(made: Path) -> Base:
    return load_base(BaseConfig(path=str(made), dtype="float32", device="cpu"))


def test_the_model_has_the_shape_that_was_asked_for(base: Base) -> None:
    config = base.model.config
    assert (config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads) == (2, 4, 2)
    assert (base.hidden_size, base.vocab_size, base.max_length) == (32, 300, 64)
    assert config.tie_word_embeddings and config.intermediate_size == 48
    assert base.eos_ids == (1,) and base.bos_id == 0


def test_the_tokenizer_knows_every_byte_and_begins_a_text(base: Base) -> None:
    tokenizer = base.tokenizer
    assert len(tokenizer) == 300 and tokenizer.eos_token_id == 1 and tokenizer.pad_token_id == 2
    text = "unseen \u00e9\u4f60\U0001f600\t\x00 bytes\n"
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == 0 and 0 <= min(ids) <= max(ids) < 300
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    seen = tokenizer(TEXT)["input_ids"]
    assert len(seen) < len(TEXT) / 2, "what was seen often is merged"


def test_the_base_answers(base: Base) -> None:
    [answer] = Engine(base, drafter="none").generate(["def "], max_new_tokens=5)
    assert 1 <= len(answer.ids) <= 5


def test_the_same_seed_gives_the_same_base_and_another_seed_another(made: Path, base: Base, tmp_path: Path) -> None:
    for seed, is_same in ((1, True), (2, False)):
        other = load_base(BaseConfig(path=str(make_base(CONFIG, rows(TEXT), tmp_path / str(seed), seed))))
        assert torch.equal(other.lm_head_weight, base.lm_head_weight) == is_same


def test_a_base_that_is_there_is_kept(made: Path) -> None:
    before = {path: path.read_bytes() for path in made.iterdir()}
    make_base(replace(CONFIG, hidden_size=64), rows("something else"), made, seed=9)
    assert {path: path.read_bytes() for path in made.iterdir()} == before


def test_too_little_text_for_the_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="scratch.vocab_size must be at most 2.*; got 300"):
        make_base(CONFIG, rows("abc"), tmp_path / "initial", seed=0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"vocab_size": 258}, "scratch.vocab_size must be at least 259 .*; got 258"),
        ({"num_layers": 0}, "scratch.num_layers must be at least 1; got 0"),
        ({"hidden_size": 30}, "scratch.hidden_size=30 must be an even multiple of num_heads=4"),
        ({"hidden_size": 12}, "scratch.hidden_size=12 must be an even multiple of num_heads=4"),
        ({"num_kv_heads": 3}, "a multiple of num_kv_heads=3"),
    ],
)
def test_a_shape_that_cannot_be_built_is_refused(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_base(replace(CONFIG, **changes), rows(TEXT), tmp_path / "initial", seed=0)
    assert not list(tmp_path.iterdir())


def test_the_default_shape_can_be_built() -> None:
    ScratchConfig().check()
