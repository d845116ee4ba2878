"""Does an answer end where it was asked to, and nowhere else?

Each case names who met it first; "own" is ours.
"""

import pytest
from random_models import five_tokens, letter_tokenizer
from scripts import run_script
from test_overrides import as_hydra_reads
from test_world_seam import answer, ids_of
from world_tokenizers import gpt2, llama2

from euryale.cli.overrides import read_escapes
from euryale.cli.schemas import InferConfig
from euryale.decoding.engine import Engine
from euryale.decoding.request import Request, StopConditions
from euryale.decoding.sampling import Sampling
from euryale.errors import UserError

PROMPT = [0, 1, 2]
PLAIN = Engine(five_tokens(), drafter="none").generate([PROMPT], 40, ignore_eos=True)[0]


def engine(eos: list[int] | None = None, drafter: str = "lookup") -> Engine:
    return Engine(five_tokens(eos=eos), drafter=drafter)


@pytest.mark.parametrize("least", [0, 1, 2, 7, 20])
@pytest.mark.parametrize("drafter", ["none", "lookup", "lookahead"])
def test_a_stop_string_does_not_end_an_answer_before_its_least_length(least: int, drafter: str) -> None:
    """vllm#21987. A stop string that is whole within the least length is passed over; the next one ends the answer."""
    stop = PLAIN.text[0]
    [found] = engine(drafter=drafter).generate([PROMPT], 40, stop=stop, min_new_tokens=least)
    end = PLAIN.text.index(stop, least)
    assert (found.text, found.ids, found.finish_reason) == (PLAIN.text[:end], PLAIN.ids[: end + 1], "stop")
    assert "".join(engine(drafter=drafter).stream(PROMPT, 40, stop=stop, min_new_tokens=least)) == found.text


@pytest.mark.parametrize(
    ("text", "stop", "least", "expected"),
    [
        pytest.param("ababab", "abab", 4, "ab", id="two that overlap: the second counts (own)"),
        pytest.param("aaaa", "aa", 2, "a", id="of equal letters (own)"),
        pytest.param("abcabd", "ab", 3, "abc", id="begins after, ends after (own)"),
        pytest.param("xxabxx", "ab", 3, "xx", id="begins before, ends after (own)"),
        pytest.param("abc", "abc", 3, "abc", id="never again (own)"),
    ],
)
def test_matches_within_the_least_length_are_passed_over(text: str, stop: str, least: int, expected: str) -> None:
    request = Request(
        [0], letter_tokenizer(26), Sampling(min_new_tokens=least), stop=StopConditions((stop,)), max_ids=9
    )
    shown = ""
    for letter in text:
        if request.finish_reason is None:
            request.take([ord(letter) - ord("a")], 1)
            shown += request.new_text()
    request.end(request.finish_reason or "length")
    shown += request.new_text()
    assert request.generation is not None and request.generation.text == expected == shown


@pytest.mark.parametrize("kind", ["eos", "stop ids", "both"])
def test_end_and_stop_ids_are_banned_until_then(kind: str) -> None:  # the meaning of transformers' min_new_tokens
    ends = [PLAIN.ids[0], PLAIN.ids[1]]
    eos = ends if kind != "stop ids" else None
    stop_ids = ends if kind != "eos" else []
    [found] = engine(eos).generate([PROMPT], 30, stop_ids=stop_ids, min_new_tokens=6)
    assert not set(found.ids[:6]) & set(ends) and len(found.ids) > 6
    assert found.finish_reason == ("stop" if kind == "stop ids" else "eos"), "an end that is a stop too is an end"


def test_ignored_ends_are_not_banned_either() -> None:  # own
    [found] = engine([PLAIN.ids[0]]).generate([PROMPT], 12, ignore_eos=True, min_new_tokens=8)
    assert found.ids == PLAIN.ids[:12] and found.finish_reason == "length"


def test_an_end_that_is_ignored_may_still_be_asked_for() -> None:  # own
    [found] = engine([PLAIN.ids[0]]).generate([PROMPT], 12, ignore_eos=True, stop_ids=PLAIN.ids[0])
    assert found.ids == PLAIN.ids[:1] and (found.text, found.finish_reason) == ("", "stop")


def test_a_banned_end_is_never_written() -> None:  # transformers drops such a ban of bad_words_ids
    eos = PLAIN.ids[2]
    [found] = engine([eos]).generate([PROMPT], 30, banned_tokens=[eos])
    assert eos not in found.ids and found.finish_reason == "length"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        pytest.param({"stop": ""}, "stop string must be text of at least one character", id="empty (vllm#2211)"),
        pytest.param({"stop": ["a", ""]}, "stop string must be text of at least", id="one of two empty (own)"),
        pytest.param({"stop": b"a"}, "stop must be a string, or a list of strings; got bytes", id="bytes (own)"),
        pytest.param({"stop": 3}, "stop must be a string, or a list of strings; got int", id="a number (own)"),
        pytest.param({"stop": [3]}, "must be text of at least one character; got 3", id="numbers (own)"),
        pytest.param({"stop": {"a"}}, "got set", id="a set (own)"),
        pytest.param({"stop": "a\ud83d"}, "stop: the text must be valid Unicode", id="half a pair (own)"),
        pytest.param({"min_new_tokens": 41}, "must be at most max_new_tokens=40; got 41", id="too many (own)"),
        pytest.param({"stop_ids": "2"}, "stop_ids must be token ids; got '2'", id="an id as text (own)"),
        pytest.param({"stop_ids": [1.0]}, "stop_ids must be token ids; got 1.0", id="a fraction (own)"),
        pytest.param({"stop_ids": True}, "stop_ids must be token ids; got True", id="a flag (own)"),
        pytest.param({"ignore_eos": "false"}, "ignore_eos must be true or false; got 'false'", id="a word (own)"),
    ],
)
def test_what_cannot_end_an_answer_is_refused(settings: dict, words: str) -> None:
    for call in (engine().generate, engine().stream, engine().scheduler().submit):
        with pytest.raises(UserError, match=words):
            call(PROMPT, 40, **settings)  # type: ignore[operator]


@pytest.mark.parametrize("stop", [None, [], ()], ids=str)
def test_no_stop_is_no_stop(stop: object) -> None:
    assert engine().generate([PROMPT], 10, stop=stop)[0].ids == PLAIN.ids[:10]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ids", "stop", "text", "reason"),
    [
        pytest.param(["a", "<|im_end|>", "\n"], "<|im_end|>\n", "a", "stop", id="one, and a newline (vllm#4577)"),
        pytest.param(["a", "\n", "<|im_start|>", "b"], "\n<|im_start|>", "a", "stop", id="a newline, and one (own)"),
        pytest.param(["a", "<s>", "b", "girl"], "a<s>b", "", "stop", id="one in the middle (own)"),
        pytest.param(["a", "<s>", "b", "girl"], "ab", "", "stop", id="one in between is not seen (own)"),
        pytest.param(["a", "<s>", "</s>", "b"], "<s></s>", "a", "stop", id="two in a row (own)"),
        pytest.param(["a", "<s>", "b"], "<s>girl", "ab", "length", id="begun and not ended (own)"),
        pytest.param(["a", "b", "<s>", "girl"], "ab<s>b", "abgirl", "length", id="held back, then given (own)"),
        pytest.param(["a", "<s>", "b"], "s>b", "ab", "length", id="part of one is no text (own)"),
    ],
)
def test_stop_strings_with_special_tokens_in_them_match(ids: list[str], stop: str, text: str, reason: str) -> None:
    tokenizer = llama2()
    prompt = ids_of(tokenizer, "girl", "\n")
    assert answer(tokenizer, prompt, ids_of(tokenizer, *ids), (stop,)) == (text, text, reason)


def test_a_special_token_in_the_prompt_ends_nothing() -> None:  # own
    tokenizer = llama2()
    prompt, ids = ids_of(tokenizer, "a", "<|im_end|>"), ids_of(tokenizer, "\n", "b")
    assert answer(tokenizer, prompt, ids, ("<|im_end|>\n",)) == ("\nb", "\nb", "length")


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        pytest.param('stop="\\n"', "\n", id="a newline (hydra#938)"),
        pytest.param('stop="\\n\\n"', "\n\n", id="two (own)"),
        pytest.param('stop="a\\tb"', "a\tb", id="a tab (own)"),
        pytest.param('stop="a\\\\nb"', "a\\nb", id="a backslash (own)"),
        pytest.param('stop="say \\"x\\""', 'say "x"', id="quotes (own)"),
        pytest.param('stop=["\\n","a, b"]', ["\n", "a, b"], id="in a list (own)"),
        pytest.param("stop='\\n'", "\\n", id="single quotes keep it (own)"),
        pytest.param('stop="${x}"', "${x}", id="no interpolation (own)"),
        pytest.param('+stop="\\r\\n"', "\r\n", id="added (own)"),
    ],
)
def test_the_quoting_that_we_advise_works(argument: str, expected: object) -> None:
    [read] = read_escapes([argument], {"stop"})
    assert as_hydra_reads(read.lstrip("+")) == expected


def test_other_settings_keep_their_letters() -> None:  # own
    assert read_escapes(['prompt="\\n"', "-m"], {"stop"}) == ['prompt="\\n"', "-m"]


@pytest.mark.parametrize(("stop", "expected"), [(None, ()), (5, ("5",)), ("a", ("a",)), (["a", 5], ("a", "5"))])
def test_a_command_lines_stop_is_read_as_text(stop: object, expected: tuple[str, ...]) -> None:  # own
    assert InferConfig(stop=stop).stops() == expected


@pytest.mark.parametrize("stop", [True, 1e3, [None]], ids=str)
def test_what_a_command_line_reads_as_something_else_is_refused(stop: object) -> None:  # own
    with pytest.raises(UserError, match="stop must be text; got"):
        InferConfig(stop=stop).stops()


@pytest.mark.parametrize("rope", [{"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}, None], ids=["x2", "plain"])
def test_an_answer_ends_where_the_context_ends(rope: dict | None) -> None:  # transformers#27985, scaled rope
    settings = {} if rope is None else {"rope_parameters": rope}
    base = five_tokens(max_length=24, **settings)
    num = 24 if rope is None else 48
    assert base.max_length == num
    [found] = Engine(base, drafter="lookup").generate([PROMPT], 1000)
    assert (len(found.ids), found.finish_reason) == (num - 3, "context")
    with pytest.raises(UserError, match=f"the context of random-qwen2 ends at {num}"):
        Engine(base, drafter="lookup").generate([[0] * num], 1)


def test_only_the_context_ends_an_answer_before_its_least_length() -> None:  # own; as with max_new_tokens
    base = five_tokens(max_length=24)
    [found] = Engine(base, drafter="lookup").generate([PROMPT], 1000, min_new_tokens=22, stop="a")
    assert (len(found.ids), found.finish_reason) == (21, "context")


def test_the_script_stops_at_a_newline(material) -> None:  # type: ignore[no-untyped-def]
    """The issue's: `infer/run.py 'stop="\\n"'` was backslash-n."""
    result = run_script("infer/run.py", "checkpoint=null", f"base.path={material}/models/stories260K", "drafter=none",
                        "prompt=Once upon a time", "max_new_tokens=200", 'stop="\\n"')  # fmt: skip
    assert result.last_line["finish_reason"] == "stop" and "\n" not in result.last_line["text"]


def test_gpt2_stops_inside_of_a_token_as_well() -> None:  # own
    tokenizer = gpt2()
    ids = tokenizer("girl named b", add_special_tokens=False)["input_ids"]
    assert answer(tokenizer, ids[:4], ids[4:], (" named",))[1:] == ("", "stop")
