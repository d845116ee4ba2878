"""Is an answer what it adds to the text of its prompt, whatever the tokenizer does at beginnings?

Each case names who met it first; "own" is ours.
"""

import random
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase
from world_tokenizers import KINDS, MORE_KINDS, base_with, gpt2, llama2, metaspace, wordpiece

from euryale.base.base import load_base
from euryale.base.config import BaseConfig
from euryale.decoding.detokenizer import Detokenizer
from euryale.decoding.engine import Engine
from euryale.decoding.request import Request, StopConditions

UNFINISHED = "\ufffd"


def whole(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def after(tokenizer: PreTrainedTokenizerBase, prompt: list[int], ids: list[int]) -> str:
    """The definition: the text of all ids, less the prompt's; a character that the prompt only begins is not its."""
    text = whole(tokenizer, prompt + ids)
    befores = [whole(tokenizer, prompt[: len(prompt) - num]) for num in range(min(4, len(prompt) + 1))]
    said = befores[:1] if not befores[0].endswith(UNFINISHED) else [b for b in befores if text.startswith(b)]
    return text[len(said[0]) :]


def answer(
    tokenizer: PreTrainedTokenizerBase, prompt: list[int], ids: list[int], stop: tuple[str, ...] = ()
) -> tuple[str, str, str | None]:
    """What is shown piece by piece, the text at the end and why it ended, of an answer of these ids."""
    request = Request(prompt, tokenizer, stop=StopConditions(stop), max_ids=len(ids))
    shown = ""
    for token in ids:
        if request.finish_reason is None:
            request.take([token], 1)
            shown += request.new_text()
    request.end(request.finish_reason or "length")
    shown += request.new_text()
    assert request.generation is not None
    return shown, request.generation.text, request.generation.finish_reason


def ids_of(tokenizer: PreTrainedTokenizerBase, *tokens: str) -> list[int]:
    ids = tokenizer.convert_tokens_to_ids(list(tokens))
    assert tokenizer.unk_token_id not in ids, tokens
    return ids


def test_stories_go_on_with_a_space(material: Path) -> None:
    """The issue's own (transformers#28776): "a little" was followed by "girl"."""
    engine = Engine(load_base(BaseConfig(path=str(material / "models" / "stories260K"), device="cpu")), drafter="none")
    prompt = "Once upon a time, there was a little"
    [plain] = engine.generate(prompt, 12)
    assert plain.text.startswith(" girl named")
    tokenizer = engine.base.tokenizer
    assert whole(tokenizer, engine.encode(prompt) + plain.ids) == prompt + plain.text
    assert "".join(engine.stream(prompt, 12)) == plain.text
    for stop in (" girl", " girl named"):
        [stopped] = engine.generate(prompt, 12, stop=stop)
        assert (stopped.text, stopped.finish_reason) == ("", "stop")
    assert engine.generate(prompt, 12, stop="little girl")[0].text == plain.text, "the prompt's words end nothing"


@pytest.mark.parametrize(
    ("make", "prompt", "ids", "text"),
    [
        pytest.param(llama2, ["\u2581a", "\u2581little"], ["\u2581girl"], " girl", id="transformers#28776"),
        pytest.param(metaspace, ["\u2581a"], ["\u2581girl", "\u2581named"], " girl named", id="transformers#26273"),
        pytest.param(metaspace, ["\u2581a"], ["girl"], "girl", id="a word goes on (own)"),
        pytest.param(wordpiece, ["girl"], ["##s", "a"], "s a", id="part of a word (own)"),
        pytest.param(wordpiece, ["a"], ["girl", "."], " girl.", id="the decoder's own cleaning is text (own)"),
        pytest.param(gpt2, ["a"], ["\u0120", "."], " .", id="a space before a full stop stays (transformers#31187)"),
        pytest.param(llama2, ["<s>"], ["\u2581girl"], "girl", id="a begin token has no text (own)"),
        pytest.param(llama2, ["<s>", "\u2581"], ["girl"], "girl", id="a prompt of one space (own)"),
        pytest.param(llama2, ["\u2581a", "</s>"] + ["<s>"] * 40, ["\u2581girl"], " girl", id="text far back (own)"),
        pytest.param(llama2, ["<|im_start|>", "a", "\n"], ["girl"], "girl", id="an assistant's turn (own)"),
        pytest.param(llama2, ["<|im_start|>", "a", "\n"], ["\u2581girl"], " girl", id="one after a space (own)"),
        pytest.param(llama2, ["\u2581a"], ["<|im_end|>", "\u2581girl"], " girl", id="special tokens first (own)"),
        pytest.param(llama2, ["\u2581a"], ["<|im_end|>", "<s>"], "", id="nothing but special tokens (own)"),
        pytest.param(llama2, ["\u2581a"], ["\u2581"], " ", id="nothing but a space (own)"),
        pytest.param(llama2, ["a", "<0xE4>", "<0xBD>"], ["<0xA0>", "b"], "\u4f60b", id="half a character (vllm#13036)"),
        pytest.param(llama2, ["a", "<0xE4>"], ["<0xBD>", "<0xA0>"], "\u4f60", id="a third of one (own)"),
        pytest.param(llama2, ["a", "<0xE4>"], ["b"], "b", id="one that is never whole (own)"),
        pytest.param(llama2, ["a", "<0xE4>", "<0xBD>"], ["<0xFF>", "b"], UNFINISHED + "b", id="or is spoilt (own)"),
        pytest.param(gpt2, ["a", "\u00e4", "\u00bd"], ["\u0142", "b"], "\u4f60b", id="bytes in GPT-2's letters (own)"),
        pytest.param(gpt2, ["a", "\u00f0", "\u0141"], ["\u013a", "\u0122", "b"], "\U0001f600b", id="four bytes (own)"),
        pytest.param(gpt2, ["\u00e4"], ["\u00bd"], "", id="still unfinished at the end (own)"),
    ],
)  # fmt: skip
def test_an_answer_is_what_it_adds_to_the_prompts_text(make, prompt: list[str], ids: list[str], text: str) -> None:  # type: ignore[no-untyped-def]
    tokenizer = make()
    asked, new = ids_of(tokenizer, *prompt), ids_of(tokenizer, *ids)
    shown, at_end, _ = answer(tokenizer, asked, new)
    assert shown == at_end == text == after(tokenizer, asked, new)


def test_a_long_prompt_of_bytes_is_cut_at_a_character() -> None:  # own
    """A run with half a character at its beginning would be shown as invalid throughout."""
    tokenizer = llama2()
    character = ids_of(tokenizer, "<0xE4>", "<0xBD>", "<0xA0>")
    for num in range(1, 25):
        prompt = character * num + character[:2]
        assert answer(tokenizer, prompt, character[2:] + character)[1] == "\u4f60\u4f60"


@pytest.mark.parametrize("kind", KINDS)
def test_any_cut_of_a_text_into_prompt_and_answer_gives_the_rest_of_it(kind: str) -> None:
    """Pieces, text and definition agree wherever a text is cut; texts of words, bytes and special tokens alike."""
    tokenizer, rng = KINDS[kind](), random.Random(7)
    for _ in range(40):
        ids = tokenizer("a little girl named b.\u4f60\u597d a", add_special_tokens=False)["input_ids"]
        for place in rng.sample(range(len(ids)), 3):
            ids.insert(place, rng.choice(tokenizer.all_special_ids))
        cut = rng.randrange(len(ids) + 1)
        shown, text, _ = answer(tokenizer, ids[:cut], ids[cut:])
        assert shown == text == after(tokenizer, ids[:cut], ids[cut:])


@pytest.mark.parametrize("kind", MORE_KINDS)
def test_random_answers_of_other_tokenizers_are_what_they_add_and_stop_anywhere(kind: str) -> None:
    """Added tokens inside of words, normalisers, decoders of other families; bytes
    are left out, as a run of them that turns out to be invalid was shown already."""
    tokenizer, rng, num_stopped = MORE_KINDS[kind](), random.Random(kind), 0
    words = [token for token in tokenizer.get_vocab() if token.isascii() or len(token) > 1]
    pool = tokenizer.convert_tokens_to_ids([token for token in words if not token.startswith("<0x")])
    for _ in range(60):
        prompt, ids = (rng.choices(pool, k=rng.randint(1, most)) for most in (5, 8))
        text = after(tokenizer, prompt, ids)
        assert answer(tokenizer, prompt, ids)[:2] == (text, text)
        start = rng.randrange(max(1, len(text)))
        if (stop := text[start : start + rng.randint(1, 6)]) and UNFINISHED not in text:
            before = text[: text.index(stop)]
            assert answer(tokenizer, prompt, ids, (stop,)) == (before, before, "stop")
            num_stopped += 1
    assert num_stopped > 20


@pytest.mark.parametrize("kind", KINDS)
def test_the_engines_answers_and_streams_go_on_from_the_prompt(kind: str) -> None:
    engine = Engine(base_with(KINDS[kind]()), drafter="lookup")
    # A run of bytes that turns out to be invalid was shown already, and is not taken back.
    no_bytes = [id for token, id in engine.base.tokenizer.get_vocab().items() if token.startswith("<0x")]
    for seed, prompt in enumerate(["a little girl", "a", "b. a little"]):
        settings = {"temperature": 2.0, "seed": seed, "banned_tokens": no_bytes}
        [generation] = engine.generate(prompt, 12, **settings)  # type: ignore[arg-type]
        asked = engine.encode(prompt)
        assert generation.text == after(engine.base.tokenizer, asked, generation.ids)
        streamed = "".join(engine.stream(asked, 12, **settings))  # type: ignore[arg-type]
        assert streamed == generation.text, "ids are a prompt like its text"


@pytest.mark.parametrize(
    ("prompt", "ids", "stop", "text", "reason"),
    [
        pytest.param(["\u2581a"], ["\u2581girl", "b"], " girl", "", "stop", id="begins with the space (the issue's)"),
        pytest.param(["\u2581a"], ["\u2581girl", "b"], " ", "", "stop", id="is the space (own)"),
        pytest.param(["\u2581a"], ["\u2581girl", "b"], "a girl", " girlb", "length", id="begins in the prompt (own)"),
        pytest.param(["\u2581a"], ["b", "\u2581a"], "a", "b ", "stop", id="stands in the prompt, and again (own)"),
        pytest.param(["a", "<0xE4>", "<0xBD>"], ["<0xA0>", "b"], "\u4f60", "", "stop", id="is the cut character (own)"),
        pytest.param(["\u2581a"], ["\u2581", "\u2581", "girl"], "  girl", "", "stop", id="two spaces (own)"),
        pytest.param(["<s>"], ["\u2581girl", "b"], " girl", "girlb", "length", id="no space without a prompt (own)"),
    ],
)
def test_stop_strings_see_the_space_at_the_seam_and_not_the_prompt(
    prompt: list[str], ids: list[str], stop: str, text: str, reason: str
) -> None:
    tokenizer = llama2()
    found = answer(tokenizer, ids_of(tokenizer, *prompt), ids_of(tokenizer, *ids), (stop,))
    assert found == (text, text, reason)


@pytest.mark.parametrize("kind", ["llama2", "gpt2"])
@pytest.mark.parametrize("run", ["one byte", "random", "after a text", "valid after invalid"])
def test_thousands_of_invalid_bytes_are_read_once_each(kind: str, run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """4,000 of them took 3.8 s: all of them were decoded again with each (the issue's)."""
    tokenizer, rng, num = KINDS[kind](), random.Random(1), 1000
    names = [f"<0x{byte:02X}>" for byte in range(128, 256)] if kind == "llama2" else [
        letter for letter in tokenizer.get_vocab() if len(letter) == 1 and ord(letter) > 126
    ]  # fmt: skip
    pool = ids_of(tokenizer, *names)
    ids = [pool[-1]] * num if run == "one byte" else [rng.choice(pool) for _ in range(num)]
    if run == "valid after invalid":
        ids = [pool[-1]] * 20 + tokenizer("\u4f60" * 100, add_special_tokens=False)["input_ids"][-300:]
    if run == "after a text":
        ids = [*tokenizer("a", add_special_tokens=False)["input_ids"], *ids]
    expected = whole(tokenizer, ids)
    num_decoded = 0
    decode = type(tokenizer).decode

    def count(self, ids, **settings):  # type: ignore[no-untyped-def]
        nonlocal num_decoded
        num_decoded += len(ids)
        return decode(self, ids, **settings)

    monkeypatch.setattr(type(tokenizer), "decode", count)
    detokenizer = Detokenizer(tokenizer)
    shown = ""
    for token in ids:
        detokenizer.add(token)
        shown += detokenizer.new_text()
    detokenizer.close()
    shown += detokenizer.new_text(is_last=True)
    assert shown == detokenizer.text
    if run == "one byte" or kind == "gpt2":
        assert shown == expected
    assert num_decoded < 60 * len(ids)
