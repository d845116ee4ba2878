"""Are prompts encoded as an answer needs them, whatever a tokenizer puts around texts, and chats by the one renderer?

Each case names who met it first; "own" is ours.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from random_models import letter_tokenizer, random_base
from test_world_ids import PlainTokenizer
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from world_tokenizers import KINDS, base_with, gpt2, llama2, with_ends

from euryale.base.base import Base, load_base
from euryale.base.base_info import describe_base
from euryale.base.config import BaseConfig
from euryale.data.chat_template import render_chat
from euryale.data.rows import Message, row_from_text
from euryale.data.tokens import prompt_ids, tokenize_row
from euryale.decoding.engine import Engine
from euryale.errors import UserError

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WITH_BOS = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
PARTS = (
    "{% for m in messages %}[{{ m['role'] }}]{% for part in m['content'] %}{{ part['text'] }}{% endfor %}{% endfor %}"
    "[assistant]"
)
TALK = [{"role": "user", "content": "a little girl"}]


@pytest.mark.parametrize(
    ("single", "begin"),
    [
        pytest.param("$A </s>", [], id="an end after every text (vllm#7491)"),
        pytest.param("<s> $A </s>", ["<s>"], id="BERT's two (own)"),
        pytest.param("<s> $A", ["<s>"], id="Llama's begin (own)"),
        pytest.param("$A", [], id="nothing (own)"),
        pytest.param("$A <|im_end|> </s>", [], id="two ends (own)"),
        pytest.param("<|im_start|> <s> $A </s>", ["<|im_start|>", "<s>"], id="two begins (own)"),
    ],
)
@pytest.mark.parametrize("text", ["a little girl", "", "\u4f60"], ids=["words", "empty", "bytes"])
def test_a_prompt_begins_as_the_tokenizer_begins_and_does_not_end(single: str, begin: list[str], text: str) -> None:
    tokenizer = with_ends(gpt2(), single)
    engine = Engine(base_with(tokenizer), drafter="none")
    bare = tokenizer(text, add_special_tokens=False)["input_ids"]
    expected = [*tokenizer.convert_tokens_to_ids(begin), *bare] or [tokenizer.bos_token_id]
    assert engine.encode(text) == expected
    assert engine.generate(text, 4)[0].ids == engine.generate([expected], 4)[0].ids


@pytest.mark.parametrize("text", ["<s>a little", "<s>"])
def test_a_begin_token_that_is_written_out_is_not_doubled(text: str) -> None:  # llama.cpp's "two bos" warning
    tokenizer = with_ends(gpt2(), "<s> $A")
    ids = Engine(base_with(tokenizer), drafter="none").encode(text)
    assert ids.count(tokenizer.bos_token_id) == 1 and ids[0] == tokenizer.bos_token_id
    row = tokenize_row(row_from_text(text + "b", "origin"), tokenizer)
    assert row.ids.count(tokenizer.bos_token_id) == 1, "in training too"


def test_a_text_of_which_the_letter_a_is_not_a_token_begins_as_well() -> None:  # own
    from tokenizers import Tokenizer, models, processors
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE({"1": 0, "2": 1, "<s>": 2, "</s>": 3}, []))
    inner.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")
    assert Engine(base_with(tokenizer), drafter="none").encode("12") == [2, 0, 1]


def test_padding_and_truncation_in_the_tokenizers_file_do_not_change_a_prompt() -> None:  # transformers#26072
    tokenizer = llama2()
    expected = tokenizer("a little girl named b")["input_ids"]
    tokenizer.backend_tokenizer.enable_truncation(2)
    tokenizer.backend_tokenizer.enable_padding(length=20)
    assert Engine(base_with(tokenizer), drafter="none").encode("a little girl named b") == expected


@pytest.mark.parametrize("kind", KINDS)
def test_a_conversation_is_answered_as_its_rendered_text(kind: str) -> None:
    tokenizer = KINDS[kind]()
    tokenizer.chat_template = CHATML
    engine = Engine(base_with(tokenizer), drafter="none")
    rendered = render_chat([Message("user", "a little girl")], tokenizer)
    expected = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    assert engine.encode(TALK) == expected
    assert engine.generate(TALK, 5)[0].ids == engine.generate([expected], 5)[0].ids
    assert "".join(engine.stream(TALK, 5)) == engine.generate([expected], 5)[0].text


def test_a_template_that_writes_the_begin_token_has_one() -> None:  # transformers#30947
    tokenizer = with_ends(gpt2(), "<s> $A")
    tokenizer.chat_template = WITH_BOS
    engine = Engine(base_with(tokenizer), drafter="none")
    assert engine.encode(TALK).count(tokenizer.bos_token_id) == 1
    rendered = tokenizer.apply_chat_template(TALK, tokenize=False)
    assert engine.encode(rendered) == engine.encode(TALK), "a rendered text is the same prompt"


def test_a_template_of_parts_shows_the_question() -> None:  # transformers#32303
    tokenizer = gpt2()
    tokenizer.chat_template = PARTS
    ids = Engine(base_with(tokenizer), drafter="none").encode(TALK)
    assert tokenizer.decode(ids) == "[user]a little girl[assistant]"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        pytest.param("{{ raise_exception('no system') }}", "chat template", id="raises (own)"),
        pytest.param("{{ messages[0]['content'] + 1 }}", "TypeError", id="adds a number (transformers#32303)"),
        pytest.param("{{ messages[7]['content'] }}", "chat template", id="wants more turns (own)"),
        pytest.param("{% for m in messages %}{{ m['content'] }}", "chat template", id="is cut off (own)"),
        pytest.param("[user][assistant]", "leaves out", id="loses the question (own)"),
    ],
)
def test_a_template_that_fails_is_one_message(template: str, words: str) -> None:
    tokenizer = gpt2()
    tokenizer.chat_template = template
    engine = Engine(base_with(tokenizer), drafter="none")
    for call in (engine.encode, engine.generate, engine.stream, engine.scheduler().submit):
        with pytest.raises(UserError, match=words):
            call(TALK)  # type: ignore[operator]


def test_without_a_template_a_conversation_is_written_out() -> None:  # own; the form of data/tokens.py
    tokenizer = gpt2()
    engine = Engine(base_with(tokenizer), drafter="none")
    assert tokenizer.decode(engine.encode(TALK)) == "a little girl"
    more = [{"role": "system", "content": "x"}, *TALK]
    assert tokenizer.decode(engine.encode(more)) == "system: x\nuser: a little girl\nassistant:"
    turns = tuple(Message(turn["role"], turn["content"]) for turn in more)
    assert engine.encode(more) == prompt_ids(None, turns, tokenizer) == engine.encode(list(turns))


def test_a_tokenizer_in_python_is_read_and_written() -> None:  # transformers#9056
    tokenizer = PlainTokenizer()
    base = random_base(vocab_size=13)
    engine = Engine(Base(base.model, tokenizer, base.path, base.fingerprint), drafter="none")
    assert engine.encode("abc") == [0, 1, 2]
    [answer] = engine.generate("abc", 8)
    known = [token for token in answer.ids if token < 8]
    assert answer.text.replace(" ", "") == "".join("abcdefgh"[token] for token in known)
    assert "".join(engine.stream("abc", 8)) == answer.text


def test_a_tokenizer_without_specials_is_as_before() -> None:  # own
    base = random_base(vocab_size=13)
    engine = Engine(Base(base.model, letter_tokenizer(13), base.path, base.fingerprint), drafter="none")
    assert engine.encode("abc") == [0, 1, 2]
    with pytest.raises(UserError, match="the prompt is empty"):
        engine.encode("")


def save_base(tokenizer: PreTrainedTokenizerBase, family: str, folder: Path) -> None:
    """A random one-layer model with this tokenizer."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family, vocab_size=len(tokenizer) + 9, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64, eos_token_id=2,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


SPLITS_OF_ITS_OWN = pre_tokenizers.Sequence(
    [pre_tokenizers.Split(Regex(r"\d{1,3}"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
)


@pytest.mark.parametrize(
    ("family", "name"),
    [
        pytest.param("qwen2", "PreTrainedTokenizerFast", id="a Qwen2 with another tokenizer (own)"),
        pytest.param("llama", "GPT2Tokenizer", id="OLMo, Granite (transformers#45812, #45920)"),
        pytest.param("llama", "Qwen2Tokenizer", id="a Llama with Qwen's class (own)"),
        pytest.param("llama", "LlamaTokenizerFast", id="DeepSeek distilled (transformers#45920, #48219)"),
    ],
)
def test_text_is_split_as_the_models_own_file_says(tmp_path: Path, family: str, name: str) -> None:
    """transformers 5 builds some families' tokenizers anew, with rules of the family and not of the model."""
    tokenizer = gpt2()
    tokenizer.backend_tokenizer.model = models.BPE(
        tokenizer.get_vocab() | {"20": 270, "202": 271, "3\u0120": 272}, [("2", "0"), ("20", "2")]
    )
    tokenizer.backend_tokenizer.pre_tokenizer = SPLITS_OF_ITS_OWN
    save_base(tokenizer, family, tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": name}))
    stored = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    base = load_base(BaseConfig(path=str(tmp_path)))
    for text in ("in 2023 it's", "a\n\nb  c", "\u4f60"):
        ids = Engine(base, drafter="none").encode(text)
        assert ids == stored.encode(text, add_special_tokens=False).ids
        assert base.tokenizer.decode(ids) == text
    assert base.tokenizer.eos_token == "</s>"
    assert describe_base(BaseConfig(path=str(tmp_path))).tokenizer("2023")["input_ids"] == stored.encode("2023").ids


def test_a_tokenizer_that_transformers_reads_as_stored_is_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_base(gpt2(), "llama", tmp_path)
    load_base(BaseConfig(path=str(tmp_path)))
    assert "splits text otherwise" not in caplog.text


@pytest.mark.parametrize(("name", "make"), [("GPT2Tokenizer", gpt2), ("LlamaTokenizer", llama2)])
@pytest.mark.parametrize("says", [True, False])
def test_whether_a_text_begins_with_a_space_is_as_the_settings_say(
    tmp_path: Path, name: str, make: Callable[[], PreTrainedTokenizerBase], says: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """tokenizer.json says otherwise; the rest of both is the same."""
    save_base(make(), "llama", tmp_path)
    written = tmp_path / "tokenizer_config.json"
    settings = json.loads(written.read_text()) | {"tokenizer_class": name}
    written.write_text(json.dumps(settings | {"add_prefix_space": not says}))
    AutoTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path)  # a tokenizer.json of this class
    of_file = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    written.write_text(json.dumps(settings | {"add_prefix_space": says}))
    base = load_base(BaseConfig(path=str(tmp_path)))
    ids = Engine(base, drafter="none").encode("a little")
    assert ids == AutoTokenizer.from_pretrained(tmp_path).encode("a little", add_special_tokens=False)
    assert ids != of_file.encode("a little", add_special_tokens=False).ids
    assert "splits text otherwise" not in caplog.text
    settings.pop("add_prefix_space", None)
    written.write_text(json.dumps(settings))  # nothing is said: the file has the last word
    base = load_base(BaseConfig(path=str(tmp_path)))
    assert Engine(base, drafter="none").encode("a little") == of_file.encode("a little", add_special_tokens=False).ids
