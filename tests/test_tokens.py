"""Token ids that carry loss, told exactly, for every shape of row and for chat templates that differ where it matters.

With one token per character, the targets read as text; `learned` cuts them into their runs.
"""

from itertools import groupby
from pathlib import Path

import pytest
from tiny_llama import character_tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from euryale.data.rows import Message, Row
from euryale.data.tokens import Sample, prompt_ids, tokenize_row
from euryale.errors import UserError

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Llama 3: bos in the template, white space trimmed, no newline after the end of a turn.
TRIMMING = (
    "<s>{% for m in messages %}<|im_start|>{{ m.role }}\n\n{{ m.content | trim }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n\n{% endif %}"
)
# Qwen 3: the last answer shows (empty) thoughts, earlier answers lose theirs.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% set answer = m.content.split('</think>')[-1].lstrip() %}"
    "{% if m.role != 'assistant' %}{{ m.content }}"
    "{% elif not loop.last %}{{ answer }}"
    "{% else %}<think>\n{{ m.content.split('</think>')[0].replace('<think>', '').strip() if '</think>' in m.content }}"
    "\n</think>\n\n{{ answer }}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Llama 2: roles must alternate, and the end of a turn is the end of the text.
ALTERNATING = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}<s>[INST] {{ m.content }} [/INST]{% else %} {{ m.content }} </s>{% endif %}{% endfor %}"
)
WITHOUT_SPECIAL_TOKENS = "{% for m in messages %}### {{ m.role }}: {{ m.content }}\n\n{% endfor %}"

QUESTION, ANSWER = Message("user", "say yes"), Message("assistant", "yes")
TWO_TURNS = (Message("system", "yes"), QUESTION, ANSWER, Message("user", "and no"), Message("assistant", "no\n"))


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    tokenizer = character_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return tokenizer


def row(messages: tuple[Message, ...]) -> Row:
    return Row(key="k", origin="a.jsonl:1", messages=messages)


def learned(sample: Sample, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The runs of targets, as text."""
    assert len(sample.ids) == len(sample.is_target)
    runs = groupby(zip(sample.ids, sample.is_target, strict=True), key=lambda pair: pair[1])
    return [tokenizer.decode([id for id, _ in run]) for is_target, run in runs if is_target]


@pytest.mark.parametrize(
    ("template", "messages", "expected"),
    [
        (CHATML, TWO_TURNS, ["yes<|im_end|>", "no\n<|im_end|>"]),
        (CHATML, (QUESTION, ANSWER, QUESTION), ["yes<|im_end|>"]),
        (CHATML, (QUESTION, ANSWER, ANSWER), ["yes<|im_end|>", "yes<|im_end|>"]),
        (CHATML, (QUESTION, Message("assistant", "")), []),
        (TRIMMING, TWO_TURNS, ["yes<|im_end|>", "no<|im_end|>"]),
        (TRIMMING, (QUESTION, Message("assistant", " \n yes \n")), ["yes<|im_end|>"]),
        (THINKING, TWO_TURNS, ["yes<|im_end|>", "no\n<|im_end|>"]),
        (ALTERNATING, TWO_TURNS[1:], ["yes </s>", "no\n </s>"]),
        (WITHOUT_SPECIAL_TOKENS, TWO_TURNS, ["yes", "no\n"]),
    ],
)
def test_only_what_the_assistant_says_and_its_end_of_turn_is_learned(
    tokenizer: PreTrainedTokenizerBase, template: str, messages: tuple[Message, ...], expected: list[str]
) -> None:
    tokenizer.chat_template = template
    assert learned(tokenize_row(row(messages), tokenizer), tokenizer) == expected


def test_thoughts_are_learned_where_the_template_shows_them(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = THINKING
    answer = Message("assistant", "<think>\nhmm\n</think>\n\nyes")
    sample = tokenize_row(row((QUESTION, answer, QUESTION, answer)), tokenizer)
    assert learned(sample, tokenizer) == ["yes<|im_end|>", "<think>\nhmm\n</think>\n\nyes<|im_end|>"]


@pytest.mark.parametrize("template", [CHATML, TRIMMING, THINKING, WITHOUT_SPECIAL_TOKENS])
def test_the_ids_are_those_of_the_template_itself(tokenizer: PreTrainedTokenizerBase, template: str) -> None:
    tokenizer.chat_template = template
    conversation = [{"role": turn.role, "content": turn.content} for turn in TWO_TURNS]
    expected = tokenizer.apply_chat_template(conversation, return_dict=False)
    assert tokenize_row(row(TWO_TURNS), tokenizer).ids == expected


def test_a_template_that_refuses_or_rewrites_a_conversation_is_named(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = ALTERNATING
    with pytest.raises(UserError, match=r"a.jsonl:1: .*roles must alternate.*roles user, user"):
        tokenize_row(row((QUESTION, QUESTION)), tokenizer)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content | length }}{% endfor %}"
    with pytest.raises(UserError, match="must show every turn"):
        tokenize_row(row((QUESTION, ANSWER)), tokenizer)


def test_text_is_learned_whole_between_bos_and_eos(tokenizer: PreTrainedTokenizerBase) -> None:
    sample = tokenize_row(Row(key="k", origin="o", text="ab"), tokenizer)
    assert tokenizer.decode(sample.ids) == "ab</s>", "this tokenizer puts no bos"
    assert all(sample.is_target)
    tokenizer.eos_token = None
    assert tokenizer.decode(tokenize_row(Row(key="k", origin="o", text="ab"), tokenizer).ids) == "ab"
    assert tokenize_row(Row(key="k", origin="o", text=" \n"), tokenizer) == Sample([], [], "k", "o")


@pytest.mark.parametrize(
    ("messages", "text", "expected"),
    [
        ((QUESTION, ANSWER), "say yes\nyes</s>", ["\nyes</s>"]),
        ((Message("user", "def f():\n"), Message("assistant", "  pass")), "def f():\n  pass</s>", ["  pass</s>"]),
        (TWO_TURNS, "system: yes\nuser: say yes\nassistant: yes\nuser: and no\nassistant: no\n\n</s>",
         [" yes\n", " no\n\n</s>"]),
        ((QUESTION, ANSWER, QUESTION), "user: say yes\nassistant: yes\nuser: say yes\n</s>", [" yes\n"]),
    ],
)  # fmt: skip
def test_without_a_template_a_conversation_becomes_plain_text(
    tokenizer: PreTrainedTokenizerBase, messages: tuple[Message, ...], text: str, expected: list[str]
) -> None:
    sample = tokenize_row(row(messages), tokenizer)
    assert tokenizer.decode(sample.ids) == text
    assert learned(sample, tokenizer) == expected


def test_ids_pass_through_and_the_prompt_is_not_learned(tokenizer: PreTrainedTokenizerBase) -> None:
    sample = tokenize_row(Row(key="k", origin="o", text="not used", ids=(5, 6, 7, 8), num_prompt=3), tokenizer)
    assert sample == Sample([5, 6, 7, 8], [False, False, False, True], "k", "o")


@pytest.mark.parametrize("template", [CHATML, TRIMMING, ALTERNATING, None])
@pytest.mark.parametrize("question", [(QUESTION,), (QUESTION, ANSWER, Message("user", "and no"))])
def test_an_answer_is_generated_behind_the_ids_it_was_trained_behind(
    tokenizer: PreTrainedTokenizerBase, template: str | None, question: tuple[Message, ...]
) -> None:
    tokenizer.chat_template = template
    prompt = prompt_ids(None, question, tokenizer)
    sample = tokenize_row(row((*question, Message("assistant", "maybe"))), tokenizer)
    assert sample.ids[: len(prompt)] == prompt
    assert not sample.is_target[len(prompt) - 1]
    assert "maybe" in learned(sample, tokenizer)[-1]


def test_a_text_prompt_is_what_a_text_begins_with(tokenizer: PreTrainedTokenizerBase) -> None:
    assert prompt_ids("ab", None, tokenizer) == tokenize_row(Row(key="", origin="", text="ab"), tokenizer).ids[:2]


@pytest.mark.parametrize("name", ["tiny-base", "stories260K"])
def test_a_real_tokenizer_begins_texts_as_it_does_itself(material: Path, name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(material / "models" / name)
    text = "def f(a):\n    return a  # caf\xe9\n" * 3
    sample = tokenize_row(Row(key="", origin="", text=text), tokenizer)
    assert sample.ids == [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]


@pytest.mark.parametrize("name", ["tiny-base", "stories260K"])
def test_words_that_are_merged_across_the_seam_are_learned(material: Path, name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(material / "models" / name)
    tokenizer.chat_template = ALTERNATING
    messages = (Message("user", "What is a class?"), Message("assistant", "The class is caf\xe9, the\nclass."))
    sample = tokenize_row(row((*messages, *messages)), tokenizer)
    runs = [run.strip() for run in learned(sample, tokenizer)]
    assert [run.replace(" ", "") for run in runs] == ["Theclassiscaf\xe9,the\nclass.</s>"] * 2
