"""Rows as they come from elsewhere, after faults that people met with them: read whole, or refused by name.

A case names where its fault was met first; one without a name is another member of the kind above it.
"""

import json
from pathlib import Path

import pytest
from tiny_llama import character_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from euryale.data.batches import BatchStream
from euryale.data.config import DataConfig
from euryale.data.documents import Splitter, lines_of, split_documents
from euryale.data.prompt_files import read_prompts
from euryale.data.rows import Message, Row, row_from_record
from euryale.data.sources import build_source
from euryale.data.tokens import prompt_ids, tokenize_row
from euryale.data.transforms import Joined
from euryale.errors import UserError

CHATML = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
SAY, YES = {"role": "user", "content": "say"}, {"role": "assistant", "content": "yes"}


def metaspace_tokenizer() -> PreTrainedTokenizerFast:
    """Words that begin with their space, and a space put before a text, as SentencePiece does."""
    letters = ["<unk>", "<s>", "</s>", "\u2581", "\n", ".", *map(chr, range(ord("A"), ord("z") + 1))]
    merges = [("L", "i"), ("Li", "l"), ("Lil", "y"), (".", "\n")]
    words = [*letters, "Li", "Lil", "Lily", ".\n"]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def learned(row: Row, template: str | None = None) -> str:
    """What carries loss, `|` between the runs."""
    tokenizer = character_tokenizer()
    tokenizer.chat_template = template
    sample = tokenize_row(row, tokenizer)
    shown = "".join(tokenizer.decode([i]) if t else "|" for i, t in zip(sample.ids, sample.is_target, strict=True))
    return "|".join(run for run in shown.split("|") if run)


@pytest.mark.parametrize("name", ["weight", "train", "training", "loss"])  # axolotl#1702
@pytest.mark.parametrize("value", [0, 0.0, False])
def test_an_answer_of_no_weight_is_read_and_not_learned(name: str, value: object) -> None:
    row = row_from_record({"messages": [SAY, {**YES, name: value}, SAY, {"role": "assistant", "content": "no"}]}, "o")
    assert learned(row, CHATML) == "no"
    assert learned(row) == " no\n</s>"


@pytest.mark.parametrize("value", [1, 1.0, True, None])
def test_an_answer_of_full_weight_is_learned(value: object) -> None:
    assert learned(row_from_record({"messages": [SAY, {**YES, "weight": value}]}, "o"), CHATML) == "yes"


def test_masks_do_not_move_a_row_to_the_other_side_of_the_split() -> None:
    plain, masked = {"messages": [SAY, YES]}, {"messages": [SAY, {**YES, "weight": 0}]}
    assert row_from_record(plain, "o").key == row_from_record(masked, "o").key


def test_of_turns_in_two_fields_the_completion_is_learned() -> None:
    record = {"prompt": [SAY, YES, SAY], "completion": [{"role": "assistant", "content": "no"}]}
    assert learned(row_from_record(record, "o"), CHATML) == "no"


@pytest.mark.parametrize(
    ("record", "roles"),
    [
        ({"system": "Be kind.", "messages": [SAY, YES]}, "system user assistant"),  # axolotl#2397
        (
            {"system": "Be kind.", "conversations": [{"from": "human", "value": "a"}]},
            "system user",
        ),  # LLaMA-Factory#1064
        ({"system_prompt": "Be kind.", "question": "a", "response": "b"}, "system user assistant"),  # AngelSlim#345
        ({"system": "Be kind.", "instruction": "a", "output": "b"}, "system user assistant"),
        ({"system": "Be kind.", "prompt": "a"}, "system user"),
        ({"system": "Be kind.", "data": ["a", "b"]}, "system user assistant"),
        ({"system_message": "Be kind.", "messages": [SAY]}, "system user"),
        ({"system": "Be kind.", "messages": [{"role": "system", "content": "Be kind."}, SAY]}, "system user"),
        ({"system": "", "messages": [SAY, YES]}, "user assistant"),
        ({"system": None, "messages": [SAY, YES]}, "user assistant"),
    ],
)
def test_a_system_text_in_a_field_of_its_own_is_the_first_turn(record: dict, roles: str) -> None:
    messages = row_from_record(record, "o").messages
    assert messages is not None and " ".join(turn.role for turn in messages) == roles
    assert not roles.startswith("system") or messages[0].content == "Be kind."


def test_a_prompt_file_may_have_it_too(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"system": "Be kind.", "question": "Why?"}\n')
    [prompt] = read_prompts(tmp_path / "a.jsonl")
    assert prompt.messages == (Message("system", "Be kind."), Message("user", "Why?"))


@pytest.mark.parametrize(
    ("turn", "complaint"),
    [
        ({"weight": 0.5}, "weight must be 0 or 1"),
        ({"weight": "0"}, "weight must be 0 or 1"),
        ({"weight": -1}, "weight must be 0 or 1"),
        ({"train": "no"}, "train must be 0 or 1"),
        ({"tool_calls": [{"id": 1}]}, "got tool_calls"),
        ({"function_call": {"name": "f"}}, "got function_call"),
        ({"content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "parts of text alone"),
        ({"content": [{"type": "text", "text": "a"}, {"type": "image"}]}, "parts of text alone"),
        ({"content": [{"type": "text", "text": None}]}, "parts of text alone"),
        ({"content": [3]}, "parts of text alone"),
        ({"content": {"text": "a"}}, "must have a text"),
        ({"role": None}, "must have one of the roles"),
    ],
)
def test_what_cannot_be_read_is_refused_and_never_left_out(turn: dict, complaint: str) -> None:
    with pytest.raises(UserError, match=f"a.jsonl:1: messages: turn 2.*{complaint}"):
        row_from_record({"messages": [SAY, {**YES, **turn}]}, "a.jsonl:1")


@pytest.mark.parametrize(
    "record",
    [
        {"system": "one", "messages": [{"role": "system", "content": "two"}, SAY]},
        {"system": ["one"], "messages": [SAY]},
        {"input_ids": [1, 2], "labels": [-100, 2]},
    ],
)
def test_a_row_that_says_two_things_or_none_is_refused(record: dict) -> None:
    with pytest.raises(UserError, match="a.jsonl:1: "):
        row_from_record(record, "a.jsonl:1")


@pytest.mark.parametrize("parts", [[{"type": "text", "text": "say"}], ["say"], [{"text": "s"}, {"text": "ay"}]])
def test_a_list_of_parts_of_text_is_their_text(parts: list) -> None:
    messages = row_from_record({"messages": [{"role": "user", "content": parts}]}, "o").messages
    assert messages == (Message("user", "say"),)


# The seam of prompt and answer (transformers#28776, #26273)


def test_prompt_and_response_are_encoded_as_the_whole_text_would_be() -> None:
    tokenizer = metaspace_tokenizer()
    row = row_from_record({"prompt": "Name a girl.", "response": "Lily"}, "o")
    sample = tokenize_row(row, tokenizer)
    assert sample.ids == [*tokenizer("Name a girl.\nLily", add_special_tokens=False)["input_ids"], 2]
    assert tokenizer.decode(sample.ids[:-1]) == "Name a girl.\nLily"
    targets = [tokenizer.convert_ids_to_tokens(i) for i, t in zip(sample.ids, sample.is_target, strict=True) if t]
    assert targets == [".\n", "Lily", "</s>"], "a token that holds some of the answer is learned"


def test_turns_without_a_template_are_one_text_too() -> None:
    tokenizer = metaspace_tokenizer()
    row = row_from_record({"messages": [SAY, YES, SAY, YES]}, "o")
    ids = tokenize_row(row, tokenizer).ids
    text = "user: say\nassistant: yes\n" * 2
    assert ids == [*tokenizer(text, add_special_tokens=False)["input_ids"], 2]
    prompt = prompt_ids(None, tuple(Message(**m) for m in (SAY, YES, SAY)), tokenizer)
    assert ids[: len(prompt)] == prompt


# Answers without words


@pytest.mark.parametrize("template", [None, CHATML])
@pytest.mark.parametrize("answer", ["", " ", "\n"])
def test_an_answer_without_words_teaches_nothing(answer: str, template: str | None) -> None:
    row = row_from_record({"prompt": "Name a girl.", "response": answer}, "o")
    assert learned(row, template) == ""


@pytest.mark.parametrize("template", [None, CHATML])
def test_a_set_of_empty_answers_is_refused_in_words(tmp_path: Path, template: str | None) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "Name a girl.", "response": ""}\n' * 9)
    tokenizer = character_tokenizer()
    tokenizer.chat_template = template
    source = build_source(DataConfig(kind="files", files=str(tmp_path / "a.jsonl"), held_out_one_in=0), "train")
    with pytest.raises(UserError, match="nothing to train on: 9 rows read.*no answer"):
        next(BatchStream(source, tokenizer, 16, 2))


# Separators of lines beyond \n, at which str.splitlines cuts and files do not (datasets#3729, jsonlines#53)

SEPARATORS = ["\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029", "\r"]


@pytest.mark.parametrize("separator", SEPARATORS, ids=ascii)
def test_only_a_newline_ends_a_line(separator: str) -> None:
    assert lines_of(f"a{separator}b\nc") == [f"a{separator}b\n", "c"]


@pytest.mark.parametrize("rule", ["headings", "paragraphs", "pieces", "lines", "<|endoftext|>"])
@pytest.mark.parametrize("separator", SEPARATORS, ids=ascii)
def test_a_text_is_cut_alike_wherever_it_is_resumed(separator: str, rule: str) -> None:
    text = (
        f"\n = One{separator} = \na{separator}\n = Two = \n{separator}\n = Three = \nb<|endoftext|>{separator} = c = \n"
    )
    lines = lines_of(text * 40)
    whole = [document.text for document in split_documents(lines, rule)]
    splitter, resumed = Splitter(rule), []
    for line in lines:
        splitter = Splitter(rule, splitter.pending)
        resumed += splitter.push(line)
    assert [text for text in [*resumed, splitter.flush()] if text.strip()] == whole


@pytest.mark.parametrize("separator", SEPARATORS[:-1], ids=ascii)
def test_joined_rows_with_lines_inside_resume_exactly(tmp_path: Path, separator: str) -> None:
    text = f" = One = \n\n{separator}\n = Two{separator} = \nb\n\n"
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for _ in range(6)))
    config = DataConfig(kind="files", files=str(tmp_path / "a.jsonl"), held_out_one_in=0, shuffle_window=1)

    def joined() -> Joined:
        return Joined(build_source(config, "train"), "headings")

    whole = [row.text for row in joined()]
    for count in range(len(whole)):
        source = joined()
        rows = iter(source)
        begun = [next(rows).text for _ in range(count)]
        resumed = joined()
        resumed.load_state_dict(json.loads(json.dumps(source.state_dict())))
        assert begun + [row.text for row in resumed] == whole


@pytest.mark.parametrize("separator", SEPARATORS[:-1], ids=ascii)
def test_a_line_of_json_may_hold_any_of_them(tmp_path: Path, separator: str) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": f"a{separator}b"}, ensure_ascii=False) + "\n")
    config = DataConfig(kind="files", files=str(tmp_path / "a.jsonl"), held_out_one_in=0)
    assert [row.text for row in build_source(config, "train")] == [f"a{separator}b"]
