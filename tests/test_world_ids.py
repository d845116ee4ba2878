"""Token ids outside the output matrix, wherever they come from (as in vllm-omni#4971)."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
from random_models import engine_of, five_tokens, letter_tokenizer, random_base
from tiny_llama import save_tiny_llama
from tokenizers import AddedToken
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

from euryale.base.base import Base, load_base
from euryale.base.base_info import describe_base
from euryale.base.config import BaseConfig
from euryale.data.batches import BatchStream
from euryale.data.rows import Message, Row
from euryale.decoding.detokenizer import Detokenizer
from euryale.decoding.engine import Engine
from euryale.errors import UserError

V = 99
PROMPT = [40, 41, 42]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("ids") / "base")


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy whose configs a test may change."""
    return Path(shutil.copytree(original, tmp_path / "base"))


def change(folder: Path, file: str, **settings: object) -> None:
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def load(folder: Path) -> Base:
    return load_base(BaseConfig(path=str(folder), dtype="float32", device="cpu"))


@pytest.mark.parametrize("where", ["generation_config.json", "config.json"])
@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ([2, V], (2,)),  # vllm-omni#4971: one end token was added after the model was made
        (V, ()),
        (-1, ()),  # vllm#1398 and configs that write -1 for none
        ([-1, 5, 5, 100_000], (5,)),
        ([], ()),
    ],
    ids=str,
)
def test_only_ends_that_can_be_written_end_a_text(
    folder: Path, where: str, given: object, kept: tuple[int, ...], caplog: pytest.LogCaptureFixture
) -> None:
    if where == "config.json":
        change(folder, "generation_config.json", eos_token_id=None)
        expected = kept
    else:
        expected = kept or (2,)  # the model's own config has one
    change(folder, where, eos_token_id=given)
    with caplog.at_level(logging.INFO):
        base = load(folder)
    assert base.eos_ids == describe_base(BaseConfig(path=str(folder))).eos_ids == expected
    assert ("eos_token_id=" in caplog.text) == (given not in ([], None)), "what is left out is said"
    for settings in ({"repetition_penalty": 1.1}, {"min_new_tokens": 2}, {"ignore_eos": True}):
        [answer] = Engine(base, drafter="lookup").generate([PROMPT], 4, **settings)
        assert 1 <= len(answer.ids) <= 4


def test_minus_one_does_not_ban_the_last_token() -> None:
    """An index of -1 is the last row of a table: the token was held back without a word."""
    base = five_tokens()
    last = base.vocab_size - 1
    settings = {"min_new_tokens": 8, "logit_bias": {last: 1e4}}
    marked = Base(base.model, base.tokenizer, base.path, base.fingerprint)
    marked.model.generation_config.eos_token_id = -1
    assert Base(base.model, base.tokenizer, base.path, base.fingerprint).eos_ids == ()
    assert engine_of(marked).generate([[0, 1]], 8, **settings)[0].ids == [last] * 8


@pytest.mark.parametrize("given", ["</s>", [2, "</s>"], True, 2.5], ids=str)
def test_an_end_that_is_not_an_id_is_refused(given: object) -> None:
    base = random_base()
    base.model.generation_config.eos_token_id = given
    with pytest.raises(UserError, match="eos_token_id must be a token id or a list of token ids; got"):
        Base(base.model, base.tokenizer, base.path, base.fingerprint)


def test_a_begin_token_outside_the_matrix_does_not_stand_for_an_empty_prompt() -> None:
    base = random_base(vocab_size=13)
    tokenizer = letter_tokenizer(13)
    tokenizer.add_special_tokens({"bos_token": "<begin>"})  # after the last row of the matrix
    assert tokenizer.bos_token_id == 13
    base = Base(base.model, tokenizer, base.path, base.fingerprint)
    assert base.bos_id is None
    with pytest.raises(UserError, match="the prompt is empty"):
        Engine(base, drafter="none").generate([""], 3)


def tokenizer_with_more(vocab_size: int) -> PreTrainedTokenizerFast:
    tokenizer = letter_tokenizer(vocab_size)
    tokenizer.add_tokens([AddedToken("<pad>", special=True), AddedToken("<|end|>", special=True)])
    return tokenizer


@pytest.mark.parametrize("settings", [{}, {"min_new_tokens": 3}, {"repetition_penalty": 1.3}], ids=str)
def test_a_stop_that_is_a_token_beyond_the_matrix_is_no_index(settings: dict[str, float]) -> None:
    """Tokenizers with a pad token of id V are everywhere (transformers#22312)."""
    base = random_base(vocab_size=13)
    base = Base(base.model, tokenizer_with_more(13), base.path, base.fingerprint)
    engine = Engine(base, drafter="lookup")
    plain = engine.generate([[1, 2]], 6, **settings)[0]
    assert engine.generate([[1, 2]], 6, stop=["<|end|>", "<pad>"], **settings)[0].ids == plain.ids


@pytest.mark.parametrize("text", ["ab<|end|>", "<pad>ab"])
def test_a_prompt_with_such_a_token_is_refused(text: str) -> None:
    base = random_base(vocab_size=13)
    base = Base(base.model, tokenizer_with_more(13), base.path, base.fingerprint)
    with pytest.raises(UserError, match="the prompt must hold token ids of random-llama, 0 to 12; got 0 to 1[34]"):
        Engine(base, drafter="none").generate([text], 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"logit_bias": {V: 1.0}}, "logit_bias must name tokens .*; got 99"),
        ({"logit_bias": {-1: 1.0}}, "logit_bias must name tokens .*; got -1"),
        ({"banned_tokens": [V]}, "banned_tokens must name tokens .*; got 99"),
        ({"banned_tokens": [[5, -2]]}, "banned_tokens must name tokens .*; got -2"),
        ({"stop_ids": [V]}, "stop_ids must name tokens .*; got 99"),
        ({"stop_ids": [-1]}, "stop_ids must name tokens .*; got -1"),
    ],
    ids=str,
)
def test_ids_of_a_request_that_the_base_does_not_have_are_refused(
    tiny_base: Base, settings: dict[str, object], message: str
) -> None:
    engine = Engine(tiny_base, drafter="none")
    with pytest.raises(UserError, match=message):
        engine.generate([PROMPT], 3, **settings)
    with pytest.raises(UserError, match=message):
        engine.stream(PROMPT, 3, **settings)


@pytest.mark.parametrize("prompt", [[V], [-1], [40, 10**9]], ids=str)
def test_ids_of_a_prompt_that_the_base_does_not_have_are_refused(tiny_base: Base, prompt: list[int]) -> None:
    with pytest.raises(UserError, match="the prompt must hold token ids of"):
        Engine(tiny_base, drafter="lookup").generate([[40], prompt], 3)


ROWS = [
    Row("a", "file:1", text="ab<|end|>c"),
    Row("b", "file:2", messages=(Message("user", "ab<pad>"), Message("assistant", "cd"))),
    Row("c", "file:3", ids=(1, 2, 13), num_prompt=1),
    Row("d", "file:4", ids=(1, -1, 2), num_prompt=1),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.key)
def test_a_row_of_data_with_such_a_token_is_a_bad_row(row: Row) -> None:
    """It was an IndexError in the embedding, after all text was written."""

    class One:
        def __iter__(self):  # type: ignore[no-untyped-def]
            return iter([row])

        def state_dict(self) -> dict[str, object]:
            return {}

    stream = BatchStream(One(), tokenizer_with_more(13), 8, 1, vocab_size=13)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=rf"{row.origin}: holds the token id -?\d+, and the base knows 0 to 12"):
        next(stream)


class PlainTokenizer(PreTrainedTokenizer):
    """A tokenizer in Python, which has no answer for an id without a token."""

    def __init__(self, **settings: object) -> None:
        self._letters = "abcdefgh"
        super().__init__(**settings)

    @property
    def vocab_size(self) -> int:
        return len(self._letters)

    def get_vocab(self) -> dict[str, int]:
        return {letter: i for i, letter in enumerate(self._letters)}

    def _tokenize(self, text: str, **settings: object) -> list[str]:
        return list(text)

    def _convert_token_to_id(self, token: str) -> int:
        return max(self._letters.find(token), 0)  # the first letter stands for what is unknown

    def _convert_id_to_token(self, index: int) -> str:
        return self._letters[index]


@pytest.mark.parametrize("tokenizer", [letter_tokenizer(8), PlainTokenizer()], ids=["in Rust", "in Python"])
def test_rows_of_a_padded_matrix_without_a_token_are_written_and_decode_to_nothing(
    tokenizer: PreTrainedTokenizerFast | PreTrainedTokenizer,
) -> None:
    """Qwen2's matrix has 271 rows more than its tokenizer has tokens."""
    base = random_base(vocab_size=13)
    base = Base(base.model, tokenizer, base.path, base.fingerprint)
    bias = {11: 1e4}
    [answer] = Engine(base, drafter="lookup").generate([[1, 2]], 4, logit_bias=bias, stop=["abc"])
    assert answer.ids == [11] * 4 and answer.text == ""
    detokenizer = Detokenizer(tokenizer)
    for token in (0, 12, 1, 8, 2):
        detokenizer.add(token)
    detokenizer.close()
    assert detokenizer.text.replace(" ", "") == "abc"
