"""Tokens are counted where they are targets, and nowhere else."""

import pytest
import torch
from tiny_llama import character_tokenizer

from euryale.data import token_counts
from euryale.data.rows import Message, Row
from euryale.data.token_counts import count_tokens
from euryale.data.tokens import tokenize_row
from euryale.errors import UserError

ROWS = [
    Row(key="a", origin="a", text="hello world"),
    Row(key="b", origin="b", text=" "),  # nothing in it
    Row(key="c", origin="c", messages=(Message("user", "zzz"), Message("assistant", "yes"))),
    Row(key="d", origin="d", ids=(5, 6, 7, 7), num_prompt=2),
]


def test_counts_are_those_of_the_targets() -> None:
    tokenizer = character_tokenizer()
    expected = [0] * 99
    for row in ROWS:
        sample = tokenize_row(row, tokenizer)
        for token, is_target in zip(sample.ids, sample.is_target, strict=True):
            expected[token] += is_target
    counts_V = count_tokens(ROWS, tokenizer, 99)
    assert counts_V.tolist() == expected and counts_V.dtype == torch.int64
    [letter_l, letter_z] = (tokenizer(letter)["input_ids"][0] for letter in "lz")
    assert counts_V[letter_l] == 3 and counts_V[letter_z] == 0, "what the user says is not learned"
    assert counts_V[5] == counts_V[6] == 0 and counts_V[7] == 2, "nor is a given prompt"


def test_counting_ends_where_frequencies_have_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_counts, "_MAX_TOKENS", 30)

    def endless():  # type: ignore[no-untyped-def]
        while True:
            yield ROWS[0]

    assert 30 <= int(count_tokens(endless(), character_tokenizer(), 99).sum()) < 60


def test_no_rows_are_no_counts() -> None:
    assert count_tokens([], character_tokenizer(), 7).tolist() == [0] * 7


def test_a_conversation_that_the_template_refuses_stops_or_is_skipped(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = character_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('not today') }}"
    with pytest.raises(UserError, match="not today"):
        count_tokens(ROWS, tokenizer, 99)
    assert count_tokens(ROWS, tokenizer, 99, on_error="skip")[7] == 2
    assert "1 bad rows were skipped" in caplog.text
