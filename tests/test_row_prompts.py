"""Prompts cut from rows: windows of texts, first questions, given prompts; drawn by seed, split by row."""

from collections.abc import Iterable

import pytest
from tiny_llama import character_tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from euryale.data.row_prompts import Opening, draw_openings, split_openings
from euryale.data.rows import Message, Row
from euryale.data.tokens import prompt_ids
from euryale.errors import UserError

TEMPLATE = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[a]{% endif %}"
)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a character, no begin-of-text."""
    return character_tokenizer()


def text_row(text: str, key: str = "k") -> Row:
    return Row(key=key, origin=f"{key}.txt:1", text=text)


def draw(rows: Iterable[Row], tokenizer: PreTrainedTokenizerFast, count: int = 100, tokens: int = 5) -> list[Opening]:
    return draw_openings(rows, tokenizer, count, tokens, seed=0)


def texts(openings: list[Opening], tokenizer: PreTrainedTokenizerFast) -> list[str]:
    return sorted(tokenizer.decode(opening.ids) for opening in openings)


def test_a_text_gives_a_window_every_four_openings(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "".join(chr(ord("A") + i) for i in range(50))
    found = draw([text_row(text)], tokenizer)
    assert texts(found, tokenizer) == sorted(text[start : start + 5] for start in (0, 20))
    assert {(opening.key, opening.origin) for opening in found} == {("k", "k.txt:1")}
    # The last window counts from half of its length on.
    assert texts(draw([text_row(text[:31])], tokenizer), tokenizer) == sorted([text[:5], text[20:25]])
    assert texts(draw([text_row(text[:30])], tokenizer), tokenizer) == [text[:5]]


def test_begin_of_text_is_one_of_the_tokens_where_the_tokenizer_puts_it() -> None:
    tokenizer = character_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    [opening] = draw([text_row("abcdefgh")], tokenizer)
    assert opening.ids[0] == 1 and tokenizer.decode(opening.ids[1:]) == "abcd"


def test_a_short_text_is_an_opening_and_a_blank_one_is_none(tokenizer: PreTrainedTokenizerFast) -> None:
    assert texts(draw([text_row("abc"), text_row("")], tokenizer), tokenizer) == ["abc"]


def test_a_conversation_gives_what_is_said_before_the_first_answer(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = TEMPLATE
    turns = (Message("user", "what?"), Message("assistant", "that"), Message("user", "why?"))
    row = Row(key="c", origin="c:1", messages=turns)
    nobody_asks = Row(key="n", origin="n:1", messages=turns[1:])
    [opening] = draw([row, nobody_asks], tokenizer)
    assert opening == Opening(prompt_ids(None, turns[:1], tokenizer), "c", "c:1", turns[:1], turns[2:])
    assert tokenizer.decode(opening.ids) == "[user]what?\n[a]"


def test_a_conversation_that_the_template_refuses_stops_or_is_skipped(
    tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer.chat_template = TEMPLATE
    bad = Row(key="b", origin="rows.jsonl:7", messages=(Message("system", "be"), Message("user", "so?")))
    good = Row(key="g", origin="rows.jsonl:8", messages=(Message("user", "ok?"),))
    with pytest.raises(UserError, match="rows.jsonl:7.*no system turn"):
        draw_openings([bad, good], tokenizer, 5, 5, seed=0)
    assert [opening.key for opening in draw_openings([bad, good], tokenizer, 5, 5, 0, "skip")] == ["g"]
    assert "1 bad rows were skipped" in caplog.text


def test_text_that_a_base_wrote_gives_the_prompt_it_was_given(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tuple(tokenizer("abcdefgh")["input_ids"])
    given = Row(key="r", origin="shard: row 1", text="defgh", ids=ids, num_prompt=3)  # shards keep the answer's text
    nothing_given = Row(key="s", origin="shard: row 2", ids=ids, num_prompt=0)
    assert draw([given, nothing_given], tokenizer) == [Opening(list(ids[:3]), "r", "shard: row 1")]


def test_the_draw_depends_on_rows_and_seed_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [text_row(f"{i:05d} and more", key=str(i)) for i in range(50)]
    first = draw_openings(rows, tokenizer, 10, 5, seed=3)
    assert len(first) == 10 and first == draw_openings(iter(rows), tokenizer, 10, 5, seed=3)
    assert first != draw_openings(rows, tokenizer, 10, 5, seed=4)


def test_an_endless_source_is_read_only_as_far_as_the_draw_needs(tokenizer: PreTrainedTokenizerFast) -> None:
    num_read = 0

    def endless() -> Iterable[Row]:
        nonlocal num_read
        while True:
            num_read += 1
            yield text_row("abcde", key=str(num_read))

    assert len(draw_openings(endless(), tokenizer, 10, 5, seed=0)) == 10
    assert num_read == 80


def test_rows_without_any_prompt_are_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UserError, match="no prompt of 5 tokens could be cut from the data"):
        draw([text_row("")], tokenizer)


def openings_of(*keys: str) -> list[Opening]:
    return [Opening([number], key, "") for number, key in enumerate(keys)]


def test_no_row_is_on_both_sides_of_the_split_however_many_are_drawn() -> None:
    openings = openings_of(*(f"row {number % 30}" for number in range(90)))
    one, two = split_openings(openings, 100)
    keys = [{opening.key for opening in side} for side in (one, two)]
    assert not keys[0] & keys[1] and min(map(len, keys)) > 5
    assert sorted(one + two) == sorted(openings)
    fewer = split_openings(openings[:40], 100)
    assert [side[: len(part)] for side, part in zip((one, two), fewer, strict=True)] == list(fewer)
    assert split_openings(openings, 4) == (one[:4], two[:4])


def test_a_single_row_is_split_between_its_openings() -> None:
    one, two = split_openings(openings_of("a", "a", "a"), 100)
    assert [opening.ids for opening in one] == [[0], [2]] and [opening.ids for opening in two] == [[1]]
    assert split_openings(openings_of("a"), 3) == (openings_of("a"), [])
