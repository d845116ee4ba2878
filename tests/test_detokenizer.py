"""Text that arrives piece by piece is the text of the whole answer: whole characters only, up to the stop."""

import random
from pathlib import Path

import pytest
from random_models import letter_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from euryale.decoding.detokenizer import Detokenizer
from euryale.decoding.stop_strings import StopString, check_stop
from euryale.errors import UserError

# Greek, CJK, an accent as a mark of its own, an emoji beyond 16 bits and a family of three joined into one.
HARD = (
    "\u03b1\u03b2 \u4f60\u597d\uff0c\u4e16\u754c e\u0301 \U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467 \u00df"
)
PLAIN = 'Once upon a time, there  was\n\n\tone (small) `cat`: it\'s "here".'


def byte_level() -> PreTrainedTokenizerFast:
    """Bytes as in GPT-2, Llama 3 and Qwen: one character may be spread over four tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=["<s>", "</s>"], show_progress=False
    )
    tokenizer.train_from_iterator([PLAIN * 3, HARD], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def byte_fallback() -> PreTrainedTokenizerFast:
    """Pieces with bytes for everything else, as in Llama 2 and Mistral; the text's first space is not written."""
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "\u2581",
        *sorted(set(PLAIN) - {" "}),
    ]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [], byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def metaspace() -> PreTrainedTokenizerFast:
    """Unigram pieces as in sentencepiece models."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator([PLAIN.replace("\n", " "), HARD] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


TOKENIZERS = {"byte_level": byte_level, "byte_fallback": byte_fallback, "metaspace": metaspace}


@pytest.fixture(scope="module", params=[*TOKENIZERS, "stories260K"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    if request.param in TOKENIZERS:
        return TOKENIZERS[request.param]()
    material: Path = request.getfixturevalue("material")
    return AutoTokenizer.from_pretrained(material / "models" / "stories260K")


def whole_text(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def pieces_of(tokenizer: PreTrainedTokenizerBase, ids: list[int], stop: tuple[str, ...] = ()) -> tuple[list[str], str]:
    """The pieces a reader sees, and the text at the end. Ids after a stop are not added."""
    detokenizer = Detokenizer(tokenizer, stop)
    pieces = []
    for token in ids:
        is_stopped = detokenizer.add(token)
        pieces.append(detokenizer.new_text())
        assert is_stopped == detokenizer.is_stopped
        if is_stopped:
            break
    detokenizer.close()
    pieces.append(detokenizer.new_text(is_last=True))
    return pieces, detokenizer.text


def random_texts(num: int) -> list[str]:
    rng = random.Random(0)
    characters = list(HARD + PLAIN)
    return [PLAIN, HARD, HARD + PLAIN] + ["".join(rng.choices(characters, k=rng.randint(1, 25))) for _ in range(num)]


def test_pieces_of_a_text_add_up_to_it_and_split_no_character(tokenizer: PreTrainedTokenizerBase) -> None:
    for text in random_texts(60):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        pieces, total = pieces_of(tokenizer, ids)
        assert "".join(pieces) == total == whole_text(tokenizer, ids)
        assert not any("\ufffd" in piece for piece in pieces)


def test_a_character_appears_with_its_last_token(tokenizer: PreTrainedTokenizerBase) -> None:
    """Nothing is held back longer than it has to be."""
    ids = tokenizer(PLAIN, add_special_tokens=False)["input_ids"]
    detokenizer = Detokenizer(tokenizer)
    for end in range(1, len(ids) + 1):
        detokenizer.add(ids[end - 1])
        assert detokenizer.text == whole_text(tokenizer, ids[:end])


def test_any_ids_give_pieces_that_add_up_and_are_never_taken_back(tokenizer: PreTrainedTokenizerBase) -> None:
    """A model may write half characters, byte after byte of nonsense, and special tokens in the middle."""
    rng = random.Random(1)
    for _ in range(60):
        ids = [rng.randrange(len(tokenizer)) for _ in range(rng.randint(1, 30))]
        detokenizer = Detokenizer(tokenizer)
        shown = text = ""
        for token in ids:
            detokenizer.add(token)
            assert detokenizer.text.startswith(text)
            text = detokenizer.text
            shown += detokenizer.new_text()
            assert shown == text
        detokenizer.close()
        assert shown + detokenizer.new_text(is_last=True) == detokenizer.text


def test_byte_level_nonsense_reads_as_decoding_it_at_once() -> None:
    tokenizer = byte_level()
    rng = random.Random(2)
    for _ in range(100):
        ids = [rng.randrange(len(tokenizer)) for _ in range(20)]
        assert pieces_of(tokenizer, ids)[1] == whole_text(tokenizer, ids)


def test_an_unfinished_character_is_shown_at_the_end_only() -> None:
    tokenizer = byte_level()
    ids = tokenizer("a\U0001f600", add_special_tokens=False)["input_ids"]
    assert len(ids) > 2
    pieces, total = pieces_of(tokenizer, ids[:-1])
    assert pieces[0] == "a" and not any(pieces[1:-1]) and "\ufffd" in pieces[-1]
    assert total == whole_text(tokenizer, ids[:-1])


def test_the_text_ends_before_a_stop_string_wherever_the_tokens_lie(tokenizer: PreTrainedTokenizerBase) -> None:
    rng = random.Random(3)
    num_found = 0
    for text in random_texts(60):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        whole = whole_text(tokenizer, ids)
        start = rng.randrange(max(1, len(whole) - 1))
        stop = whole[start : start + rng.randint(1, 5)]
        if not stop or "\ufffd" in stop:
            continue
        pieces, total = pieces_of(tokenizer, ids, (stop, "never in the text"))
        assert "".join(pieces) == total == whole[: whole.index(stop)]
        num_found += 1
    assert num_found > 30


def test_of_several_stop_strings_the_earliest_wins() -> None:
    tokenizer = letter_tokenizer(26)
    ids = tokenizer("abcabdefg")["input_ids"]
    for stop, text in (
        (("fg", "abd", "de"), "abc"),
        (("g", "f"), "abcabde"),
        (("abcabdefgh", "ef"), "abcabd"),
        (("x",), "abcabdefg"),
        (("abc",), ""),
    ):
        pieces, total = pieces_of(tokenizer, ids, stop)
        assert "".join(pieces) == total == text


def test_two_stop_strings_in_one_token_end_at_the_first() -> None:
    tokenizer = Tokenizer(models.BPE({"a": 0, " stop. END": 1}, []))
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    assert pieces_of(fast, [0, 1, 0], ("END", ". ", "stop"))[1] == "a "


def test_what_may_become_a_stop_string_is_held_back_and_given_when_it_does_not() -> None:
    tokenizer = letter_tokenizer(26)
    detokenizer = Detokenizer(tokenizer, ("abc", "cx"))
    shown = []
    for letter in "zababdcx":
        detokenizer.add(ord(letter) - ord("a"))
        shown.append(detokenizer.new_text())
    assert shown == ["z", "", "", "ab", "", "abd", "", ""]
    assert detokenizer.is_stopped and detokenizer.text == "zababd"
    open_end = Detokenizer(tokenizer, ("abc",))
    open_end.add(0)
    assert open_end.new_text() == "" and open_end.new_text(is_last=True) == "a"


def test_a_stop_string_before_half_a_character_is_found_at_the_latest_at_the_end() -> None:
    vocabulary = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    first_byte = next(letter for letter in vocabulary if letter == "\u00f0")  # F0, as byte-level tokens write it
    tokenizer = Tokenizer(models.BPE(vocabulary | {"STOP" + first_byte: 256}, []))
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    pieces, total = pieces_of(fast, [vocabulary["a"], 256], ("STOP",))
    assert "".join(pieces) == total == "a"


@pytest.mark.parametrize(("stop", "strings"), [(None, ()), ("x", ("x",)), (["a", "b"], ("a", "b")), ([], ())])
def test_stop_is_one_string_several_or_none(stop: str | list[str] | None, strings: tuple[str, ...]) -> None:
    assert check_stop(stop) == strings


@pytest.mark.parametrize("stop", ["", ["a", ""], ["a", 3]])
def test_an_empty_or_wordless_stop_is_refused(stop: object) -> None:
    with pytest.raises(UserError, match="stop="):
        check_stop(stop)  # type: ignore[arg-type]


def test_the_search_for_a_stop_string_takes_a_few_operations_a_character() -> None:
    """Strings that nearly match everywhere, where comparing every beginning anew would take their length squared."""

    class Counted(list):
        num_read = 0

        def __getitem__(self, index):  # type: ignore[no-untyped-def]
            Counted.num_read += 1
            return super().__getitem__(index)

    rng = random.Random(3)
    for string in ("aab", "abab", "aabaaab", "a" * 400 + "b", "ab" * 200 + "c"):
        stop = StopString(string)
        stop._shorter = Counted(stop._shorter)
        Counted.num_read = 0
        text = ""
        for _ in range(300):
            piece = "".join(rng.choices("ab", [9, 1], k=rng.randint(1, 6)))
            end = stop.feed(piece)
            if end is not None:
                assert (text + piece)[: len(text) + end].endswith(string)
                assert string not in (text + piece)[: len(text) + end - 1]
                break
            text += piece
            assert string not in text
            assert stop.num_matched == max(n for n in range(len(string)) if text.endswith(string[:n]))
        assert Counted.num_read <= len(text) + len(string)
