"""Is everything read that a caller may mean by a prompt, an id, a seed or a number, and anything else refused by type?

Each case names who met it first; "own" is ours.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from test_world_tokenizers import CHATML
from transformers import BatchEncoding
from world_tokenizers import base_with, gpt2

from euryale.data.rows import Message
from euryale.decoding.engine import Engine
from euryale.decoding.sampling import Sampling
from euryale.errors import UserError


def chat_tokenizer():  # type: ignore[no-untyped-def]
    tokenizer = gpt2()
    tokenizer.chat_template = CHATML
    tokenizer.pad_token = "</s>"
    return tokenizer


TOKENIZER = chat_tokenizer()
ENGINE = Engine(base_with(TOKENIZER), drafter="none")
TALK = [{"role": "user", "content": "a girl"}]
IDS = TOKENIZER("a little girl")["input_ids"]
MORE = TOKENIZER("b.")["input_ids"]
TALK_IDS = ENGINE.encode(TALK)


def read(prompts: object) -> list[list[int]]:
    """The prompts that generate takes these for."""
    return [generation.ids for generation in ENGINE.generate(prompts, 4)]  # type: ignore[arg-type]


def answers(*prompts: list[int]) -> list[list[int]]:
    return [generation.ids for generation in ENGINE.generate(list(prompts), 4)]


ONE: dict[str, tuple[Callable[[], object], list[int]]] = {
    "a text": (lambda: "a little girl", IDS),
    "numpy's text (own)": (lambda: np.str_("a little girl"), IDS),
    "ids": (lambda: IDS, IDS),
    "a tuple of ids (own)": (lambda: tuple(IDS), IDS),
    "a range (own)": (lambda: range(7, 12), list(range(7, 12))),
    "numpy ints (the issue's)": (lambda: [np.int64(i) for i in IDS], IDS),
    "mixed ints (own)": (lambda: [IDS[0], *map(np.int32, IDS[1:])], IDS),
    "an array (the issue's)": (lambda: np.array(IDS), IDS),
    "an array of uint16 (own)": (lambda: np.array(IDS, dtype=np.uint16), IDS),
    "a tensor (the issue's)": (lambda: torch.tensor(IDS), IDS),
    "a tensor of int32 (own)": (lambda: torch.tensor(IDS, dtype=torch.int32), IDS),
    "a list of tensors of one id (own)": (lambda: list(torch.tensor(IDS)), IDS),
    "a tensor with a gradient elsewhere, of one row (own)": (lambda: torch.tensor([IDS]), IDS),
    "a view of a tensor (own)": (lambda: torch.tensor([IDS, IDS])[1], IDS),
    "apply_chat_template's BatchEncoding (trl#4880)": (
        lambda: TOKENIZER.apply_chat_template(TALK, add_generation_prompt=True), TALK_IDS),
    "the same as tensors (own)": (
        lambda: TOKENIZER.apply_chat_template(TALK, add_generation_prompt=True, return_tensors="pt"), TALK_IDS),
    "the same as a list (own)": (
        lambda: TOKENIZER.apply_chat_template(TALK, add_generation_prompt=True, return_dict=False), TALK_IDS),
    "a tokenizer's output (own)": (lambda: TOKENIZER("a little girl"), IDS),
    "the same as arrays (own)": (lambda: TOKENIZER("a little girl", return_tensors="np"), IDS),
    "a dict of ids (own)": (lambda: {"input_ids": IDS}, IDS),
    "a conversation (the issue's)": (lambda: TALK, TALK_IDS),
    "of tuples (own)": (lambda: tuple(TALK), TALK_IDS),
    "of ShareGPT (own)": (lambda: [{"from": "human", "value": "a girl"}], TALK_IDS),
    "of parts (own)": (lambda: [{"role": "user", "content": [{"type": "text", "text": "a girl"}]}], TALK_IDS),
    "of our turns (own)": (lambda: [Message("user", "a girl")], TALK_IDS),
    "padding on the right (own)": (
        lambda: {"input_ids": [*IDS, 2, 2], "attention_mask": [*[1] * len(IDS), 0, 0]}, IDS),
    "padding on the left (own)": (
        lambda: {"input_ids": torch.tensor([[2, 2, *IDS]]), "attention_mask": torch.tensor([[0, 0, *[1] * len(IDS)]])},
        IDS),
    "a mask of flags (own)": (
        lambda: {"input_ids": np.array([[2, *IDS]]), "attention_mask": np.array([[False, *[True] * len(IDS)]])}, IDS),
}  # fmt: skip


@pytest.mark.parametrize("name", ONE)
def test_one_prompt_is_read_wherever_one_is_taken(name: str) -> None:
    make, expected = ONE[name]
    assert ENGINE.encode(make()) == expected  # type: ignore[arg-type]
    assert read(make()) == read([make()]) == answers(expected), "alone, and in a list"
    assert "".join(ENGINE.stream(make(), 4)) == ENGINE.generate([expected], 4)[0].text  # type: ignore[arg-type]
    scheduler = ENGINE.scheduler(2)
    request = scheduler.submit(make(), 4)  # type: ignore[arg-type]
    scheduler.run()
    assert request.prompt == expected and [request.ids] == answers(expected)


SEVERAL: dict[str, Callable[[], object]] = {
    "texts": lambda: ["a little girl", "b."],
    "a tuple of texts (own)": lambda: ("a little girl", "b."),
    "a text and ids (own)": lambda: ["a little girl", MORE],
    "rows of different types (own)": lambda: [np.array(IDS), torch.tensor(MORE)],
    "a padded batch (own)": lambda: TOKENIZER(["a little girl", "b."], padding=True, return_tensors="pt"),
    "padded on the left (own)": lambda: TOKENIZER(
        ["a little girl", "b."], padding=True, padding_side="left", return_tensors="np"
    ),
    "a ragged batch (own)": lambda: TOKENIZER(["a little girl", "b."]),
    "outputs of a tokenizer (own)": lambda: [TOKENIZER("a little girl"), TOKENIZER("b.", return_tensors="pt")],
}


@pytest.mark.parametrize("name", SEVERAL)
def test_several_prompts_are_several_answers(name: str) -> None:
    assert read(SEVERAL[name]()) == answers(IDS, MORE)


def test_rows_of_an_array_and_conversations_are_several_prompts_too() -> None:  # the issue's
    for rows in (np.array([IDS, IDS[::-1]]), torch.tensor([IDS, IDS[::-1]]), torch.tensor([IDS, IDS[::-1]]).int()):
        assert read(rows) == answers(IDS, IDS[::-1])
    assert read([TALK, TALK]) == answers(TALK_IDS, TALK_IDS)
    rendered = TOKENIZER.apply_chat_template([TALK, TALK], add_generation_prompt=True)
    assert isinstance(rendered, BatchEncoding) and read(rendered) == answers(TALK_IDS, TALK_IDS)
    assert read([TALK, "a little girl", IDS]) == answers(TALK_IDS, IDS, IDS)


@pytest.mark.parametrize("nothing", [[], (), np.zeros((0, 3), int), torch.zeros(0, 3, dtype=torch.long)], ids=type)
def test_no_prompts_are_no_answers(nothing: Any) -> None:
    assert ENGINE.generate(nothing) == []


WRONG: dict[str, tuple[object, str]] = {
    "None": (None, "got None"),
    "a number (own)": (5, "got 5"),
    "a flag (own)": (True, "got True"),
    "bytes (own)": (b"a", "got bytes"),
    "a generator (own)": ((i for i in IDS), "got generator"),
    "a set (own)": ({1, 2}, "got set"),
    "None in a list (own)": ([None], "got None"),
    "bytes in a list (own)": (["a", b"a"], "got bytes"),
    "fractions (own)": ([1.0, 2.0], "got 1.0"),
    "flags (own)": ([True, False], "got True"),
    "texts among ids (own)": ([1, "a"], "got 'a'"),
    "ids among texts (own)": (["a", 1], "got 1"),
    "a list too many (own)": ([[[1, 2]]], "got list of int"),
    "texts a list too deep (own)": ([["a"]], "got 'a'"),
    "an array of fractions (own)": (np.array([1.0]), "got an array of float64"),
    "a ragged array (own)": (np.array([[1], [2, 3]], dtype=object), "got an array of object"),
    "a tensor of bfloat16 (own)": (torch.ones(2, dtype=torch.bfloat16), "got a tensor of bfloat16"),
    "a tensor of flags (own)": (torch.ones(2, dtype=torch.bool), "got a tensor of bool"),
    "three dimensions (own)": (torch.ones(1, 1, 2, dtype=torch.long), "got 3"),
    "one number in a tensor (own)": (torch.tensor(5), "got 0"),
    "a turn alone (own)": ({"role": "user", "content": "a"}, "Give a list of turns"),
    "a mapping of something else (own)": ({"text": "a"}, "must hold input_ids alone; got text"),
    "an empty mapping (own)": ({}, "must hold input_ids; got an empty one"),
    "embeddings alongside ids (own)": ({"input_ids": IDS, "inputs_embeds": 1}, "got inputs_embeds"),
    "an image alongside ids (own)": ({"input_ids": IDS, "pixel_values": 1}, "got pixel_values"),
    "input_ids of text (own)": ({"input_ids": "a"}, "got 'a'"),
    "a mask of another shape (own)": ({"input_ids": IDS, "attention_mask": [1]}, "must have the shape of input_ids"),
    "a mask with a gap (own)": ({"input_ids": [7, 8, 9], "attention_mask": [1, 0, 1]}, "got a gap"),
    "a mask that hides all (own)": ({"input_ids": [7], "attention_mask": [0]}, "got a row of zeros"),
    "a mask of weights (own)": ({"input_ids": [7], "attention_mask": [0.5]}, "must be 0 or 1"),
    "negative ids (own)": ([-1, 2], "got -1 to 2"),
    "ids beyond the matrix (own)": (np.array([10**6]), "must hold token ids of random-llama, 0 to"),
    "a turn without a role (own)": ([{"content": "a"}], "must have one of the roles"),
    "a turn without a content (own)": ([{"role": "user"}], "must have a text in content"),
    "half a character (own)": ("a\ud83d", "must be valid Unicode"),
    "a turn among texts (own)": (["a", {"role": "user", "content": "b"}], "Give a list of turns"),
}


@pytest.mark.parametrize("name", WRONG)
def test_anything_else_is_refused_by_its_type(name: str) -> None:
    prompt, words = WRONG[name]
    with pytest.raises(UserError, match=words):
        ENGINE.generate(prompt, 4)  # type: ignore[arg-type]


@pytest.mark.parametrize("prompt", [["a", "b"], [[1, 2]], torch.tensor([[7, 8], [8, 7]])], ids=type)
def test_a_stream_answers_one_prompt(prompt: Any) -> None:
    for call in (ENGINE.stream, ENGINE.scheduler().submit, ENGINE.encode):
        with pytest.raises(UserError, match="prompt must be"):
            call(prompt)  # type: ignore[operator]


@pytest.mark.parametrize("stop_ids", [2, np.int64(2), [2], (2,), np.array([2]), torch.tensor(2), torch.tensor([2])],
                         ids=lambda value: type(value).__name__)  # fmt: skip
def test_stop_ids_may_be_one_or_several(stop_ids: Any) -> None:
    [found] = ENGINE.generate([IDS], 5, stop_ids=stop_ids, logit_bias={2: 100.0})
    assert found.ids == [2] and found.finish_reason == "stop"


def test_a_seed_of_none_is_drawn_and_told() -> None:
    drawn = ENGINE.generate([IDS] * 3, 8, temperature=2.0, seed=None)
    assert len({answer.seed for answer in drawn}) == 3
    again = ENGINE.generate([IDS] * 3, 8, temperature=2.0, seed=[answer.seed for answer in drawn])
    assert [answer.ids for answer in again] == [answer.ids for answer in drawn]
    one, other = ENGINE.generate([IDS] * 2, 8, temperature=2.0, seed=[None, 5])
    assert other.seed == 5 and other.ids == ENGINE.generate([IDS], 8, temperature=2.0, seed=5)[0].ids
    assert one.ids == ENGINE.generate([IDS], 8, temperature=2.0, seed=one.seed)[0].ids
    request = ENGINE.scheduler().submit(IDS, 4, seed=None)
    stream = ENGINE.stream(IDS, 4, seed=None)
    assert "".join(stream) and stream.generation is not None and 0 <= request.seed < 2**63 > stream.generation.seed


@pytest.mark.parametrize("seed", [7, np.int64(7), np.uint8(7), [7], np.array([7]), torch.tensor([7]), torch.tensor(7)],
                         ids=lambda value: type(value).__name__)  # fmt: skip
def test_a_seed_is_any_whole_number(seed: Any) -> None:
    [found] = ENGINE.generate([IDS], 6, temperature=1.5, seed=seed)
    assert found.seed == 7 and found.ids == ENGINE.generate([IDS], 6, temperature=1.5, seed=7)[0].ids


@pytest.mark.parametrize("seed", [True, 1.0, "7", -1, 2**63, [1, 2], np.array([1.0]), {}], ids=str)
def test_anything_else_is_not_a_seed(seed: Any) -> None:
    with pytest.raises(UserError, match="^seed must "):
        ENGINE.generate([IDS], 4, temperature=1.0, seed=seed)


def test_numbers_of_numpy_are_numbers() -> None:
    plain = Sampling(0.5, 0.25, 3, 0.5, 2.0, 1.0, -1.0, {5: 2.0}, (5, (6, 7)), 2)
    numpys = Sampling(
        np.float64(0.5), np.float32(0.25), np.int64(3), np.float16(0.5), np.int8(2), np.float32(1), np.int64(-1),  # type: ignore[arg-type]
        {np.int64(5): np.float32(2.0)}, np.array([5]).tolist() + [np.array([6, 7])], np.int16(2),
    )  # fmt: skip
    assert numpys == plain and numpys.keywords() == plain.keywords()
    [found] = ENGINE.generate([IDS], np.int64(3))  # type: ignore[list-item]
    assert len(found.ids) == 3


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"top_k": "5"}, "top_k must be a whole number; got '5'"),
        ({"top_k": 5.0}, "top_k must be a whole number; got 5.0"),
        ({"top_k": None}, "top_k must be a whole number; got None"),
        ({"temperature": "0.5"}, "temperature must be a number; got '0.5'"),
        ({"temperature": True}, "temperature must be a number; got True"),
        ({"temperature": None}, "temperature must be a number; got None"),
        ({"temperature": [0.5]}, "temperature must be a number; got list"),
        ({"temperature": torch.tensor(0.5)}, "temperature must be a number; got torch.Tensor"),
        ({"top_p": "1"}, "top_p must be a number; got '1'"),
        ({"min_p": {}}, "min_p must be a number; got dict"),
        ({"repetition_penalty": "no"}, "repetition_penalty must be a number; got 'no'"),
        ({"presence_penalty": None}, "presence_penalty must be a number; got None"),
        ({"frequency_penalty": 1j}, "frequency_penalty must be a number; got complex"),
        ({"logit_bias": None}, "logit_bias must be a mapping of token ids to numbers; got None"),
        ({"logit_bias": [[5, 1.0]]}, "logit_bias must be a mapping of token ids to numbers; got list"),
        ({"logit_bias": {"5": 1.0}}, "logit_bias must be .* got '5' as an id"),
        ({"logit_bias": {5: "1"}}, "logit_bias of token 5 must be a number; got '1'"),
        ({"banned_tokens": "a"}, "banned_tokens must be a list of token ids"),
        ({"banned_tokens": 5}, "banned_tokens must be a list of token ids, .* got 5"),
        ({"banned_tokens": [None]}, "banned_tokens must be token ids, .* got None"),
        ({"banned_tokens": [True]}, "banned_tokens must be token ids; got True"),
        ({"min_new_tokens": "3"}, "min_new_tokens must be a whole number; got '3'"),
        ({"max_new_tokens": "3"}, "max_new_tokens must be a whole number; got '3'"),
        ({"max_new_tokens": 3.0}, "max_new_tokens must be a whole number; got 3.0"),
        ({"max_new_tokens": None}, "max_new_tokens must be a whole number; got None"),
        ({"max_new_tokens": True}, "max_new_tokens must be a whole number; got True"),
        ({"drafter": "lookup"}, 'drafter of a request must be "none"'),
    ],
    ids=str,
)
def test_a_setting_of_another_type_is_refused_by_name(settings: dict, words: str) -> None:
    for call in (ENGINE.generate, ENGINE.stream, ENGINE.scheduler().submit):
        with pytest.raises(UserError, match=words):
            call(IDS, **({"max_new_tokens": 4} | settings))  # type: ignore[operator]
