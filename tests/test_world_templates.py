"""Tokenizers and chat templates that differ, after faults that people met elsewhere: rendered right, or refused.

A case names where its fault was met first; one without a name is another member of the kind above it.
"""

from itertools import groupby

import pytest
from tiny_llama import character_tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizer, PreTrainedTokenizerBase

from euryale.data.chat_template import chat_template, render_chat
from euryale.data.rows import Message, Row
from euryale.data.tokens import bos_ids, prompt_ids, tokenize_row
from euryale.errors import UserError
from euryale.regenerate.manifest import template_name

SAY, YES = Message("user", "say yes"), Message("assistant", "yes")
ASK = [SAY]
LOOP = "{% for m in messages %}"
END = "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
STRINGS = LOOP + "[{{ m.role }}]{{ m.content }}" + END
PARTS = (
    LOOP + "[{{ m.role }}]{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}" + END
)
FIRST_PART = LOOP + "[{{ m.role }}]{{ m['content'][0]['text'] }}" + END
USER_PARTS = LOOP + "[{{ m.role }}]{{ m.content[0].text if m.role == 'user' else m.content + '' }}" + END
EITHER = (
    LOOP + "[{{ m.role }}]{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}" + END
)
CASES = [
    ("strings", STRINGS, "vllm#54987"),
    ("parts", PARTS, "transformers#32303"),
    ("the first part alone", FIRST_PART, "vllm#9358"),
    ("parts for the user, a string for the system", USER_PARTS, "vllm#9358"),
    ("either", EITHER, "LiteRT-LM#3688"),
    ("upper case of what is said", STRINGS.replace("m.content", "m.content | upper"), "transformers#32303"),
    ("JSON of what is said", STRINGS.replace("m.content", "m.content | tojson"), "transformers#32303"),
    ("trimmed", STRINGS.replace("m.content", "m.content | trim"), "prime-rl#1103"),
]


class Words(PreTrainedTokenizer):
    """A tokenizer written in Python: words and spaces, in the order in which they are met."""

    def __init__(self, **settings: object) -> None:
        self.words: list[str] = ["<unk>", "</s>"]
        super().__init__(unk_token="<unk>", eos_token="</s>", **settings)

    @property
    def vocab_size(self) -> int:
        return len(self.words)

    def get_vocab(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words)}

    def _tokenize(self, text: str, **_: object) -> list[str]:
        return ["".join(run) for _, run in groupby(text, str.isalpha)]

    def _convert_token_to_id(self, token: str) -> int:
        if token not in self.words:
            self.words.append(token)
        return self.words.index(token)

    def _convert_id_to_token(self, index: int) -> str:
        return self.words[index]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return "".join(tokens)


def with_template(template: object) -> PreTrainedTokenizerBase:
    tokenizer = character_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def learned(tokenizer: PreTrainedTokenizerBase, *messages: Message) -> list[str]:
    sample = tokenize_row(Row("k", "a.jsonl:1", messages=messages), tokenizer)
    runs = groupby(zip(sample.ids, sample.is_target, strict=True), key=lambda pair: pair[1])
    return [tokenizer.decode([id for id, _ in run]) for is_target, run in runs if is_target]


@pytest.mark.parametrize(("name", "template", "reference"), CASES, ids=[case[0] for case in CASES])
def test_a_question_is_shown_in_whatever_form_the_template_wants(name: str, template: str, reference: str) -> None:
    rendered = render_chat([Message("system", "be kind"), SAY], with_template(template))
    assert "be kind" in rendered.lower() and "say yes" in rendered.lower() and rendered.endswith("[assistant]")


@pytest.mark.parametrize("template", [STRINGS, PARTS, FIRST_PART, EITHER])  # transformers#32303
def test_an_answer_is_learned_in_either_form(template: str) -> None:
    assert learned(with_template(template), SAY, YES, SAY, YES) == ["yes", "yes"]


@pytest.mark.parametrize(
    ("template", "messages", "complaint"),
    [
        ("{% for m in messages %}[{{ m.role }}]{% endfor %}", ASK, "leaves out what user said"),  # transformers#32303
        (STRINGS.replace("{{ m.content }}", "{{ m.content if m.role != 'system' }}"),
         [Message("system", "s"), SAY], "leaves out what system said"),  # sglang#40082
        (STRINGS.replace("{{ m.content }}", "{{ m.content if m.role != 'tool' }}"),
         [SAY, Message("tool", "3")], "leaves out what tool said"),
        ("{{ messages[-1].content }}", [SAY, YES, SAY], "leaves out what user, assistant said"),  # chat_templates#15
        ("{{ 1 + messages[0].content }}", ASK, "got TypeError"),  # vllm#54987
        ("{{ messages[0].content | int + none }}", ASK, "got TypeError"),
        ("{{ messages[3].content.text }}", ASK, "got UndefinedError"),
        ("{{ raise_exception('no user') }}", ASK, "no user"),
        ("{{ 1 // 0 }}{{ messages[0].content }}", ASK, "got ZeroDivisionError"),
        ("{% for m in messages %}", ASK, "got TemplateSyntaxError"),
        ("{{ messages[0].content | nofilter }}", ASK, "nofilter"),
    ],
)  # fmt: skip
def test_a_template_that_fails_or_loses_a_turn_is_refused_by_name(
    template: str, messages: list[Message], complaint: str
) -> None:
    with pytest.raises(UserError, match=f"^rows.jsonl:3: .*{complaint}"):
        render_chat(messages, with_template(template), "rows.jsonl:3")


TAGGED = STRINGS.replace("{{ m.content }}", "{% generation %}{{ m.content }}{% endgeneration %}")
SHOWN = [
    (TAGGED, "llama-cpp-python#2225"),  # tags that only training reads
    (STRINGS.replace("{{ m.content }}", "{{ m.content }}{% if loop.index > 9 %}{% break %}{% endif %}"), "own"),
    ("{% if tools %}{{ tools | length }}{% endif %}" + STRINGS, "own"),
    ("{% set day = strftime_now('%Y') %}" + STRINGS, "textgen#6675"),
    ("{{ nothing }}{% set n = namespace(x=0) %}" + STRINGS, "own"),
]


@pytest.mark.parametrize(("template", "reference"), SHOWN, ids=[case[0][:40] for case in SHOWN])
def test_what_templates_use_beyond_jinja_is_there(template: str, reference: str) -> None:
    tokenizer = with_template(template)
    assert render_chat(ASK, tokenizer) == "[user]say yes[assistant]"
    assert learned(tokenizer, SAY, YES, SAY, YES) == ["yes", "yes"]


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "got RecursionError"),
        ("{{ 'a' * 10**15 }}", "got MemoryError"),
        ("{% for i in range(10**9) %}{% endfor %}", "got OverflowError"),
        ("{{ ''.__class__.__mro__ }}", "got SecurityError"),
        ("{% include '/etc/passwd' %}", "got TypeError"),
    ],
)
def test_a_template_that_would_never_end_or_reach_out_is_refused(template: str, complaint: str) -> None:  # own
    with pytest.raises(UserError, match=complaint):
        render_chat(ASK, with_template(template + STRINGS))


@pytest.mark.parametrize(
    ("templates", "expected"),
    [
        ({"default": STRINGS, "tool_use": "tools"}, "[user]say yes[assistant]"),  # llama.cpp#6484
        ({"chat": STRINGS}, "[user]say yes[assistant]"),
        ({"rag": "r", "tool_use": "t"}, None),
    ],
)
def test_of_several_named_templates_the_default_is_taken(templates: dict[str, str], expected: str | None) -> None:
    tokenizer = with_template(templates)
    if expected is None:
        with pytest.raises(UserError, match="must be one template, or several .* got rag, tool_use"):
            chat_template(tokenizer)
        return
    assert render_chat(ASK, tokenizer) == expected
    assert tokenizer.decode(prompt_ids(None, (SAY,), tokenizer)) == expected
    assert learned(tokenizer, SAY, YES) == ["yes"]


def test_a_set_remembers_which_of_the_named_templates_wrote_it() -> None:
    one, two = (type("Base", (), {"tokenizer": with_template(t)}) for t in ({"default": STRINGS, "rag": "r"}, STRINGS))
    assert template_name(one) == template_name(two)  # type: ignore[arg-type]


@pytest.mark.parametrize("template", ["", None, {}])
def test_no_template_is_none(template: object) -> None:
    assert chat_template(with_template(template)) is None
    assert learned(with_template(template), SAY, YES) == ["\nyes</s>"]


@pytest.mark.parametrize("content", ["yes", " yes", "yes\n", " \n yes \n"])
@pytest.mark.parametrize("template", [STRINGS, STRINGS.replace("m.content", "m.content | trim")])
def test_ids_are_those_of_the_template_whether_it_strips_or_not(template: str, content: str) -> None:  # prime-rl#1103
    tokenizer = with_template(template)
    messages = [{"role": "user", "content": "say"}, {"role": "assistant", "content": content}]
    sample = tokenize_row(Row("k", "o", messages=tuple(Message(**m) for m in messages)), tokenizer)
    assert sample.ids == tokenizer.apply_chat_template(messages, return_dict=False)
    assert learned(tokenizer, Message("user", "say"), Message("assistant", content))[0].strip() == "yes"


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        ("$A </s>", ""),  # vllm#7491: an end token after every text is not a beginning
        ("<s> $A </s>", "<s>"),
        ("<s> $A", "<s>"),
        ("<unk> <s> $A", "<unk><s>"),  # ChatGLM begins with two
        ("$A", ""),
    ],
)
def test_a_prompt_begins_as_the_tokenizer_begins_and_never_ends_as_it_ends(processor: str, expected: str) -> None:
    tokenizer = character_tokenizer()
    special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<s>", "</s>", "<unk>")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=processor, special_tokens=special)
    assert tokenizer.decode(bos_ids(tokenizer)) == expected
    assert tokenizer.decode(prompt_ids("ab", None, tokenizer)) == f"{expected}ab"
    assert tokenizer.decode(tokenize_row(Row("k", "o", text="ab"), tokenizer).ids) == f"{expected}ab</s>"


@pytest.mark.parametrize("template", [None, STRINGS])
def test_a_tokenizer_written_in_python_learns_the_same(template: str | None) -> None:  # transformers#9056
    tokenizer = Words()
    assert not tokenizer.is_fast
    tokenizer.chat_template = template
    assert learned(tokenizer, SAY, YES)[0].strip().startswith("yes")
    two = learned(tokenizer, SAY, YES, SAY, Message("assistant", "no way"))
    assert [run.split("\n")[0].split("[")[0].strip(": ") for run in two] == ["yes", "no way"]
