"""Answers in a grammar: JSON of a schema, or text of an expression, the same with any drafter as without."""

import json
import random
import re
import sys
from typing import Any

import jsonschema_rs
import pytest
import torch
from json_bases import EOS, json_base, json_tokenizer, random_schema
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from plain_decoding import Request as SlowRequest
from plain_decoding import next_scores
from random_models import HEAD_DESIGNS, random_heads, random_tree, twin
from world_tokenizers import base_with, wordpiece

from euryale.decoding.config import AnswerConfig, DrafterConfig
from euryale.decoding.engine import Engine
from euryale.decoding.grammar import GrammarState, check_grammar
from euryale.decoding.request import Generation, Request, StopConditions
from euryale.decoding.sampling import Sampling
from euryale.errors import UserError
from euryale.evaluation.losslessness import judge

ENDED = ("stop", "eos")


def drafting(base: Any, rng: random.Random) -> Engine:
    """Heads on a tree, or lookup."""
    if rng.random() < 0.3:
        return Engine(base, drafter=DrafterConfig("lookup"))
    return Engine(base, random_heads(HEAD_DESIGNS[0], base), "heads", random_tree(rng, 4, 4, rng.randint(2, 12)))


def random_settings(rng: random.Random) -> dict[str, Any]:
    settings: dict[str, Any] = {"temperature": rng.choice([0.0, 0.7, 1.2])}
    for name, value in (("top_k", 5), ("top_p", 0.8), ("min_p", 0.02), ("repetition_penalty", 1.2)):
        if rng.random() < 0.25:
            settings[name] = value
    return settings


def test_thirty_random_schemas_with_trees_in_mixed_batches_are_the_text_of_plain_decoding() -> None:
    num_whole = 0
    for trial in range(10):
        rng = random.Random(trial)
        base = json_base(seed=trial, eos=rng.choice([EOS, None]))
        engine, plain = drafting(base, rng), Engine(base, drafter="none")
        scheduler = engine.scheduler(num_rows=3, row_tokens=128)
        asked: list[tuple[Request, dict[str, Any], Generation]] = []
        for seed in range(4):
            settings = random_settings(rng)
            if seed:
                settings["json_schema"] = random_schema(rng)
            prompt = [rng.randrange(2, 20) for _ in range(rng.randint(1, 6))]
            (alone,) = plain.generate([prompt], 45, seed=seed, **settings)
            asked.append((scheduler.submit(prompt, 45, seed, **settings), settings, alone))
            if rng.random() < 0.5:
                scheduler.step()
        scheduler.run()
        for request, settings, alone in asked:
            assert request.generation is not None
            assert request.generation.ids == alone.ids and request.generation.text == alone.text, (trial, settings)
            assert request.generation.finish_reason == alone.finish_reason
            if "json_schema" in settings and alone.finish_reason in ENDED:
                num_whole += 1
                jsonschema_rs.validate(settings["json_schema"], json.loads(alone.text))
    assert num_whole >= 25


def test_an_answer_follows_the_language_as_a_list_of_its_texts_would_make_it() -> None:
    """The slow twin knows the language by heart, and nothing of automata. One byte a token: where only one text can
    follow, llguidance takes the tokenizer's own way to write it, and not every way."""
    rng, base = random.Random(3), json_base(seed=5, has_longer=False, dtype=torch.float64)
    engine, model = drafting(base, random.Random(1)), twin(base)
    for trial in range(12):
        words = {"".join(rng.choice("ab12\u00e9{") for _ in range(rng.randint(1, 5))) for _ in range(12)}
        temperature = rng.choice([0.0, 1.0])
        regex = "|".join(map(re.escape, sorted(words)))
        prompt = [rng.randrange(2, 30) for _ in range(3)]
        (answer,) = engine.generate([prompt], 20, temperature=temperature, seed=trial, regex=regex)
        expected = by_list(base, model, prompt, {word.encode() for word in words}, temperature, trial)
        assert answer.ids == expected and answer.text in words


def by_list(base: Any, model: Any, prompt: list[int], words: set[bytes], temperature: float, seed: int) -> list[int]:
    """Plain decoding: a token may follow where the text is then the beginning of a word."""
    pieces = {token: bytes_of(base, token) for token in range(2, len(base.tokenizer))}
    request = SlowRequest(prompt, 20, Sampling(temperature), seed, StopConditions())
    ids: list[int] = []
    text = b""
    while not ids or text not in words or any(word != text and word.startswith(text) for word in words):
        scores = next_scores(model, prompt + ids, request)
        fits = {token for token, piece in pieces.items() if any(word.startswith(text + piece) for word in words)}
        fits |= {EOS} if text in words else set()
        ids.append(max(fits, key=lambda token: scores[token]))
        if ids[-1] == EOS:
            break
        text += pieces[ids[-1]]
    return ids


def bytes_of(base: Any, token: int) -> bytes:
    piece = base.tokenizer.convert_ids_to_tokens(token)
    return bytes({"\u0120": 32, "\u010a": 10}.get(character, ord(character)) for character in piece)


def test_where_the_text_may_end_and_may_go_on_end_tokens_are_allowed() -> None:
    base = json_base(seed=2)
    engine = Engine(base, drafter="none")
    (ended,) = engine.generate([[5]], 8, regex="[0-9]+", logit_bias={EOS: 50.0})
    assert ended.finish_reason == "eos" and len(ended.ids) == 2 and ended.ids[-1] == EOS
    (ignored,) = engine.generate([[5]], 8, regex="[0-9]+", logit_bias={EOS: 50.0}, ignore_eos=True)
    assert ignored.finish_reason == "length" and len(ignored.ids) == 8 and ignored.text.isdigit()
    (late,) = engine.generate([[5]], 8, regex="[0-9]+", logit_bias={EOS: 50.0}, min_new_tokens=4)
    assert late.finish_reason == "eos" and len(late.ids) == 5


@pytest.mark.parametrize("settings", [{"ignore_eos": True}, {"min_new_tokens": 10}, {}])
def test_an_answer_ends_where_nothing_can_follow(settings: dict[str, Any]) -> None:
    engine = drafting(json_base(seed=4), random.Random(2))
    (answer,) = engine.generate([[6]], 10, json_schema={"const": "ab"}, **settings)
    assert answer.finish_reason == "stop" and answer.text == '"ab"'


def test_a_stop_string_cuts_an_answer_in_a_grammar_too() -> None:
    (answer,) = Engine(json_base(), drafter="none").generate([[6]], 20, json_schema={"const": "abc"}, stop="c")
    assert answer.finish_reason == "stop" and answer.text == '"ab'


def test_a_stream_in_a_grammar_is_the_text_of_generate() -> None:
    engine = drafting(json_base(seed=1), random.Random(5))
    settings: dict[str, Any] = {"json_schema": {"type": "array", "items": {"type": "integer"}, "maxItems": 5}}
    (whole,) = engine.generate(["12"], 30, temperature=0.9, seed=3, **settings)
    assert "".join(engine.stream("12", 30, temperature=0.9, seed=3, **settings)) == whole.text


def test_whitespace_between_values_is_bounded() -> None:
    base = json_base()
    space, line = base.tokenizer.convert_tokens_to_ids(["\u0120", "\u010a"])
    bias = {space: 100.0, line: 90.0}
    (answer,) = Engine(base, drafter="none").generate([[6]], 60, json_schema={"const": [1, 2]}, logit_bias=bias)
    assert answer.finish_reason == "stop" and json.loads(answer.text) == [1, 2] and "   " not in answer.text


def test_settings_that_forbid_what_the_grammar_asks_for_are_an_error_of_that_row_alone() -> None:
    base = json_base()
    digits = base.tokenizer.convert_tokens_to_ids(list("0123456789"))
    scheduler = Engine(base, drafter="none").scheduler(num_rows=2, row_tokens=40)
    barred = scheduler.submit([5], 8, regex="[0-9]{3}", banned_tokens=[*digits, *base.tokenizer("12")["input_ids"], 59])
    other = scheduler.submit([5], 8, regex="[0-9]{3}")
    scheduler.run()
    assert barred.error is not None and barred.error.startswith("no token is left to write")
    assert other.generation is not None and re.fullmatch("[0-9]{3}", other.generation.text)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"json_schema": {"type": "integerx"}},
            "json_schema must be one that llguidance can follow; got: Invalid type",
        ),
        ({"json_schema": {"if": {"type": "string"}}}, "Unimplemented keys"),
        ({"json_schema": {"$ref": "http://127.0.0.1:1/x"}}, "does not fetch resources"),
        ({"json_schema": {"allOf": [{"type": "string"}, {"type": "integer"}]}}, "Unsatisfiable schema"),
        ({"json_schema": "[1]"}, "json_schema must be a mapping, or JSON text of an object"),
        ({"json_schema": '{"type":'}, "json_schema must be a mapping, or JSON text of an object"),
        ({"json_schema": {"const": float("nan")}}, "json_schema must be a mapping, or JSON text of an object"),
        ({"json_schema": {"const": {1, 2}}}, "json_schema must be a mapping, or JSON text of an object"),
        ({"json_schema": True}, "json_schema must be a mapping, or JSON text of an object; got True"),
        (
            {"json_schema": {"type": "object", "properties": {"\ud800": {}}}},  # a ValueError of llguidance, a 500
            "json_schema must be one that llguidance can follow; got: unexpected end of hex escape",
        ),
        (
            {"json_schema": '{"properties":{"a":' * 90 + "{}" + "}}" * 90},
            "json_schema must be one that llguidance can follow; got: recursion limit exceeded",
        ),
        ({"regex": "\ud800"}, "regex: the text must be valid Unicode"),
        ({"regex": "("}, "regex must be one that llguidance can follow; got"),
        ({"regex": r"\bfoo"}, "regex must be one that llguidance can follow; got"),
        ({"regex": ""}, "regex must be text of at least one character"),
        ({"regex": 5}, "regex must be text of at least one character"),
        ({"regex": "a", "json_schema": {}}, "json_schema and regex must not both be given"),
    ],
)
def test_a_grammar_that_cannot_be_followed_is_refused_before_decoding(settings: dict[str, Any], message: str) -> None:
    engine = Engine(json_base(), drafter="none")
    with pytest.raises(UserError, match=re.escape(message)):
        engine.generate([[5]], 8, **settings)
    with pytest.raises(UserError, match=re.escape(message)):
        engine.scheduler(num_rows=1, row_tokens=20).submit([5], 8, **settings)


def test_a_tokenizer_whose_tokens_are_no_bytes_is_refused() -> None:
    with pytest.raises(UserError, match=r"need a tokenizer whose tokens are bytes .* \(can't determine decoder type"):
        Engine(base_with(wordpiece()), drafter="none").generate([[5]], 8, regex="a")


def test_without_llguidance_a_grammar_is_refused_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(UserError, match=re.escape("pip install -c constraints.txt -e '.[grammar]'")):
        Engine(json_base(), drafter="none").generate([[5]], 8, regex="a")


def test_a_grammar_that_exceeds_the_bounds_of_llguidance_is_an_error_and_leaves_the_tree_walk_whole() -> None:
    tokenizer = json_tokenizer()
    vocabulary = LLTokenizer(tokenizer.backend_tokenizer.to_str(), eos_token=EOS)
    start = LLMatcher(
        vocabulary,
        LLMatcher.grammar_from_json_schema({"type": "object"}),
        log_level=0,
        limits=LLParserLimits(max_lexer_states=5, verbose_errors=False),
    )
    brace, quote = tokenizer.convert_tokens_to_ids(["{", '"'])
    state = GrammarState(start, len(tokenizer), len(tokenizer), {EOS})
    found = state.after_nodes([0, brace, quote], [0, 0, 1])
    assert set(found) == {0, 1} and found[0][brace] and not found[1].any()  # of the brace nothing can be said
    assert state.next()[brace]  # the text itself can go on
    assert not state.accept(brace) and state.error is not None and "too many states" in state.error
    request = Request([5], tokenizer, grammar=GrammarState(start, len(tokenizer), len(tokenizer), {EOS}))
    request.take([brace, quote], 3)
    assert request.finish_reason == "error" and request.ids == [brace]
    assert request.error is not None and request.error.startswith("no token is left to write: json_schema or regex")


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_the_test_of_losslessness_knows_the_grammar(temperature: float) -> None:
    """More tokens than it judges at a time."""
    base = json_base(seed=6, dtype=torch.float64)
    settings: dict[str, Any] = {"json_schema": {"type": "array", "items": {"enum": ["ab", 1, 12]}, "minItems": 50}}
    (answer,) = drafting(base, random.Random(1)).generate([[5]], 150, temperature=temperature, seed=3, **settings)
    judged = judge(base, [5], answer.ids, Sampling(temperature, **settings), 3)
    assert len(answer.ids) == 150 and max(judged.emitted_gap) == 0


def test_a_tree_walk_leaves_the_automaton_where_the_text_is() -> None:
    rng, base = random.Random(0), json_base()
    state = GrammarState(check_grammar(base.tokenizer, Sampling(json_schema={})), 60, base.vocab_size, (EOS,))
    for _ in range(40):
        before = state.next().copy()
        tree = random_tree(rng, 4, 4, 12)
        state.after_nodes([0, *(rng.randrange(60) for _ in tree.parents[1:])], tree.parents)
        state._next = None
        assert (state.next() == before).all()
        if state.accept(int(rng.choice(before.nonzero()[0]))) or EOS in state._ids:
            break


def test_the_first_guess_is_one_that_the_grammar_allows() -> None:
    """Heads that know nothing of the grammar still guess its first token rightly where it has but one."""
    base = json_base(seed=7)
    heads = random_heads(HEAD_DESIGNS[0], base)
    engine = Engine(base, heads, "heads", random_tree(random.Random(0), 1, 1, 2))
    (answer,) = engine.generate([[5]], 12, json_schema={"const": "abcde"})
    assert answer.text == '"abcde"' and answer.tau > 1.3


def test_settings_of_the_command_line_read_the_schema_from_a_file(tmp_path: Any) -> None:
    file = tmp_path / "schema.json"
    file.write_text('{"type": "object"}')
    assert AnswerConfig(json_schema=str(file)).sampling().json_schema == '{"type": "object"}'
    with pytest.raises(UserError, match="cannot be read .FileNotFoundError.. Give a file that holds a JSON schema"):
        AnswerConfig(json_schema=str(tmp_path / "none.json")).sampling()


@pytest.mark.parametrize(
    ("settings", "schema", "message"),
    [
        ({"regex": "("}, None, "regex must be one that llguidance can follow; got: .*unclosed group"),
        ({"regex": r"\bfoo"}, None, "regex must be one that llguidance can follow; got"),
        ({}, '{"type": "foo"}', "json_schema must be one that llguidance can follow; got: Invalid type: foo."),
        (
            {},
            '{"properties": {"\\ud800": {}}}',
            "json_schema must be one that llguidance can follow; got: unexpected end",
        ),
    ],
)
def test_a_grammar_of_the_command_line_is_refused_before_a_base_is_loaded(
    settings: dict[str, Any], schema: str | None, message: str, tmp_path: Any
) -> None:
    if schema is not None:
        settings["json_schema"] = str(tmp_path / "schema.json")
        (tmp_path / "schema.json").write_text(schema)
    with pytest.raises(UserError, match=message):
        AnswerConfig(**settings).check()


def test_a_grammar_that_can_be_read_passes_before_a_base_is_loaded() -> None:
    AnswerConfig(regex="a+b").check()


def test_a_row_beyond_the_tokenizer_is_never_written() -> None:
    spare = json_base(num_spare=40)
    bias = {token: 90.0 for token in range(len(spare.tokenizer), spare.vocab_size)}
    (answer,) = Engine(spare, drafter="none").generate([[5]], 30, temperature=1.0, regex="[0-9a]{20}", logit_bias=bias)
    assert re.fullmatch("[0-9a]{20}", answer.text) and max(answer.ids) < len(spare.tokenizer)
