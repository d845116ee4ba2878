"""Answers of the HTTP API in OpenAI's shapes, against a fake engine that writes the prompt again and again."""

from collections.abc import Iterator
from typing import Any

import pytest
from fake_engine import FakeEngine
from on_loopback import MODEL, Running, running

from euryale.data.rows import Message
from euryale.server.limits import Timeouts
from euryale.server.planning import messages_of
from euryale.server.schemas import ChatMessage


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running() as started:
        yield started


def texts_of(events: list[Any], index: int = 0) -> str:
    pieces = [choice for event in events for choice in event["choices"] if choice["index"] == index]
    return "".join(piece["text"] if "text" in piece else piece["delta"].get("content", "") for piece in pieces)


def test_a_completion_is_what_the_engine_wrote(server: Running) -> None:
    answer = server.complete(prompt="abc", max_tokens=5).json()
    assert answer["object"] == "text_completion" and answer["model"] == MODEL and answer["id"].startswith("cmpl-")
    assert answer["choices"] == [{"index": 0, "text": "abcab", "logprobs": None, "finish_reason": "length"}]
    assert answer["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 5,
        "total_tokens": 8,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def test_a_chat_answer_has_a_message(server: Running) -> None:
    answer = server.chat(max_completion_tokens=4, n=2).json()
    assert answer["object"] == "chat.completion"
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    message = answer["choices"][1]["message"]
    assert message == {"role": "assistant", "content": message["content"], "refusal": None}
    assert answer["usage"]["completion_tokens"] == 8


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({}, 16),
        ({"max_tokens": None}, 16),
        ({"max_tokens": 1}, 1),
        ({"stop": None, "seed": None, "logprobs": None}, 16),
    ],
)
def test_null_is_absent(server: Running, fields: dict[str, Any], tokens: int) -> None:
    assert server.complete(**fields).json()["usage"]["completion_tokens"] == tokens


def test_a_chat_without_a_limit_takes_what_the_context_leaves(server: Running) -> None:
    usage = server.chat().json()["usage"]
    assert usage["total_tokens"] == server.service.info.row_tokens


@pytest.mark.parametrize(
    "prompt", ["abc", [0, 1, 2], ["abc", "de"], [[0, 1, 2], [3, 4]]], ids=["text", "ids", "texts", "lists of ids"]
)
def test_a_prompt_has_four_forms(server: Running, prompt: Any) -> None:
    choices = server.complete(prompt=prompt, max_tokens=4).json()["choices"]
    assert [choice["text"] for choice in choices] == ["abca", "dede"][: len(choices)]
    assert len(choices) == (2 if isinstance(prompt[0], list) or prompt == ["abc", "de"] else 1)


def test_content_in_parts_is_one_text(server: Running) -> None:
    parts = [{"type": "text", "text": "ab"}, {"type": "text", "text": "c"}]
    whole = server.chat(max_tokens=4).json()
    assert (
        server.chat(messages=[{"role": "user", "content": parts}], max_tokens=4).json()["choices"] == whole["choices"]
    )


@pytest.mark.parametrize(("role", "seen"), [("developer", "system"), ("function", "tool"), ("user", "user")])
def test_a_template_sees_the_roles_that_it_knows(role: str, seen: str) -> None:
    """The same names as for prompts of the Python API and rows of data."""
    [turn] = messages_of([ChatMessage(role=role, content="a")])
    assert turn == Message(seen, "a")


@pytest.mark.parametrize(
    "fields", [{}, {"n": 3}, {"stop": ["bc"]}, {"echo": True, "logprobs": 2}, {"prompt": ["ab", "c"]}]
)
def test_a_stream_of_completions_is_the_same_answer_in_pieces(server: Running, fields: dict[str, Any]) -> None:
    fields = {"seed": 3, "max_tokens": 9} | fields
    whole = server.complete(**fields).json()
    reply = server.complete(stream=True, stream_options={"include_usage": True}, **fields)
    assert reply.headers["content-type"].startswith("text/event-stream")
    events = reply.events()
    assert len({event["id"] for event in events}) == 1
    assert events[-1]["choices"] == [] and events[-1]["usage"] == whole["usage"]
    assert all(event["usage"] is None for event in events[:-1])
    for choice in whole["choices"]:
        assert texts_of(events, choice["index"]) == choice["text"]
        mine = [c for event in events for c in event["choices"] if c["index"] == choice["index"]]
        assert [c["finish_reason"] for c in mine if c["finish_reason"]] == [choice["finish_reason"]]
        if fields.get("logprobs"):
            for key, values in choice["logprobs"].items():
                assert [value for c in mine for value in c["logprobs"][key]] == values


@pytest.mark.parametrize("fields", [{}, {"n": 2}, {"logprobs": True, "top_logprobs": 2}])
def test_a_stream_of_a_chat_is_the_same_answer_in_pieces(server: Running, fields: dict[str, Any]) -> None:
    fields = {"seed": 3, "max_tokens": 7} | fields
    whole = server.chat(**fields).json()
    events = server.chat(stream=True, **fields).events()
    for choice in whole["choices"]:
        mine = [c for event in events for c in event["choices"] if c["index"] == choice["index"]]
        assert [c["delta"].get("role") for c in mine] == ["assistant", *[None] * (len(mine) - 1)]
        assert texts_of(events, choice["index"]) == choice["message"]["content"]
        assert mine[-1]["delta"] == {} and mine[-1]["finish_reason"] == choice["finish_reason"]
        assert all(c["finish_reason"] is None for c in mine[:-1])
        if fields.get("logprobs"):
            told = [token for c in mine if c["logprobs"] for token in c["logprobs"]["content"]]
            assert told == choice["logprobs"]["content"]
    assert "usage" not in events[-1], "only where it was asked for"


def test_a_quick_models_steps_come_together_but_the_first_token_and_the_end_do_not_wait() -> None:
    """Ten tokens in seven steps: with a pause longer than the answer there are the first event and the last one."""
    with running(FakeEngine(step_seconds=0.002), timeouts=Timeouts(events=20.0)) as server:
        events = server.complete(stream=True, max_tokens=10).events()
        assert [len(event["choices"][0]["text"]) for event in events] == [1, 9]
        assert events[1]["choices"][0]["finish_reason"] == "length"


def test_usage_can_come_with_every_event(server: Running) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = server.complete(stream=True, stream_options=options, max_tokens=6).events()
    counts = [event["usage"]["completion_tokens"] for event in events]
    assert counts == sorted(counts) and counts[-1] == 6


def test_a_stop_string_ends_the_answer_before_it(server: Running) -> None:
    choice = server.complete(prompt="abcd", stop="cd").json()["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("ab", "stop")


def test_logprobs_of_an_echo_are_prompt_and_answer_and_the_first_is_null(server: Running) -> None:
    """What lm-eval reads: exactly prompt + 1 entries for max_tokens=1."""
    logprobs = server.complete(prompt=[[0, 1, 2, 3]], echo=True, logprobs=1, max_tokens=1).json()["choices"][0][
        "logprobs"
    ]
    assert logprobs["tokens"] == list("abcda")
    assert logprobs["token_logprobs"] == [None, -0.1, -0.1, -0.1, -0.1]
    assert logprobs["top_logprobs"][0] is None and logprobs["top_logprobs"][1] == {"b": -0.1}
    assert logprobs["text_offset"] == [0, 1, 2, 3, 4]


def test_no_tokens_and_echo_scores_the_prompt_alone(server: Running) -> None:
    choice = server.complete(prompt="abc", echo=True, logprobs=0, max_tokens=0).json()["choices"][0]
    assert choice["text"] == "abc" and choice["finish_reason"] == "length"
    assert choice["logprobs"]["token_logprobs"] == [None, -0.1, -0.1]


@pytest.mark.parametrize("is_stream", [False, True])
def test_no_tokens_and_no_logprobs_do_not_ask_the_engine(server: Running, is_stream: bool) -> None:
    before = len(server.backend.started)
    reply = server.complete(prompt="abc", echo=True, max_tokens=0, stream=is_stream)
    assert (texts_of(reply.events()) if is_stream else reply.json()["choices"][0]["text"]) == "abc"
    assert len(server.backend.started) == before


def test_ranked_logprobs_of_a_chat_have_bytes(server: Running) -> None:
    content = server.chat(logprobs=True, top_logprobs=2, max_tokens=1).json()["choices"][0]["logprobs"]["content"]
    first = content[0]
    assert first["bytes"] == list(first["token"].encode()) and len(first["top_logprobs"]) == 2


def test_choices_are_drawn_with_seeds_that_follow_each_other(server: Running) -> None:
    answer = server.complete(prompt=["ab", "c"], n=2, seed=7, max_tokens=1).json()
    assert answer["euryale"]["seed"] == 7
    assert [job.seed for job in server.backend.started[-4:]] == [7, 8, 9, 10]


def test_a_seed_is_drawn_and_told_where_none_is_given(server: Running) -> None:
    seeds = {server.complete(max_tokens=1).json()["euryale"]["seed"] for _ in range(3)}
    assert len(seeds) == 3 and all(0 <= seed < 2**53 for seed in seeds)


def test_sampling_reaches_the_engine_as_it_was_asked(server: Running) -> None:
    fields: dict[str, Any] = {
        "temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1, "repetition_penalty": 1.1, "presence_penalty": -0.5,
        "frequency_penalty": 0.25, "logit_bias": {"3": -100, "4": 2.5}, "min_tokens": 2, "stop_token_ids": [5],
        "ignore_eos": True, "stop": ["x", "yz"], "max_tokens": 3,
    }  # fmt: skip
    server.complete(**fields)
    job = server.backend.started[-1]
    sampling = job.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.9, 7, 0.1)
    assert (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty) == (1.1, -0.5, 0.25)
    assert sampling.logit_bias == {3: -100.0, 4: 2.5} and sampling.min_new_tokens == 2
    assert (job.stop, job.stop_ids, job.ignore_eos, job.max_tokens) == (("x", "yz"), (5,), True, 3)


@pytest.mark.parametrize(
    ("fields", "temperature"), [({}, 1.0), ({"temperature": 0}, 0.0), ({"temperature": 1e-30}, 0.0)]
)
def test_the_temperature_is_one_by_default_and_greedy_near_zero(
    server: Running, fields: dict[str, Any], temperature: float
) -> None:
    server.complete(max_tokens=1, **fields)
    assert server.backend.started[-1].sampling.temperature == temperature


def test_token_ids_are_returned_where_they_are_asked_for(server: Running) -> None:
    choice = server.complete(prompt="abc", return_token_ids=True, max_tokens=2).json()["choices"][0]
    assert (choice["prompt_token_ids"], choice["token_ids"]) == ([0, 1, 2], [0, 1])
    events = server.complete(prompt="abc", return_token_ids=True, max_tokens=4, stream=True).events()
    assert [token for event in events for token in event["choices"][0]["token_ids"]] == [0, 1, 2, 0]
    answer = server.chat(return_token_ids=True, max_tokens=2).json()
    assert len(answer["prompt_token_ids"]) == answer["usage"]["prompt_tokens"]


def test_the_figures_of_drafting_come_in_vllms_shape(server: Running) -> None:
    """9 tokens in steps of 1, 2, 1, 2, 1, 2: three drafted tokens were right, of two nodes in each of six steps."""
    answer = server.complete(max_tokens=9, seed=1).json()
    speculation = answer["metrics"]["speculative_decoding"]
    assert speculation["num_spec_steps"] == 6 and speculation["num_accepted_draft_tokens"] == 3
    assert speculation["num_draft_tokens"] == 12 and speculation["draft_acceptance_rate"] == 0.25
    assert speculation["mean_acceptance_length"] == 1.5 and speculation["acceptance_histogram"] == [3, 3, 0, 0]
    assert answer["euryale"] == {"tau": 1.5, "seed": 1, "is_lossless": True, "drafter": "heads"}
    assert 0 <= answer["metrics"]["queue_time_ms"] <= answer["metrics"]["time_to_first_token_ms"]


@pytest.mark.parametrize(
    "fields",
    [{"tools": [], "tool_choice": "none"}, {"response_format": {"type": "text"}}, {"suffix": None, "best_of": 1},
     {"user": "ann", "metadata": {"a": "b"}, "anything": [1]}],
)  # fmt: skip
def test_fields_that_ask_for_nothing_are_ignored(server: Running, fields: dict[str, Any]) -> None:
    assert server.complete(max_tokens=1, **fields).status == 200


def test_models_are_listed_and_shown(server: Running) -> None:
    card = server.ask("GET", f"/v1/models/{MODEL}").json()
    assert card == {"id": MODEL, "object": "model", "created": 1, "owned_by": "euryale", "max_model_len": 256}
    assert server.ask("GET", "/v1/models").json() == {"object": "list", "data": [card]}
    assert server.ask("GET", "/v1/models/other").error["code"] == "model_not_found"


def test_tokenize_and_detokenize_are_inverse(server: Running) -> None:
    answer = server.ask("POST", "/tokenize", {"model": MODEL, "prompt": "abc", "return_token_strs": True}).json()
    assert answer == {"count": 3, "max_model_len": 256, "tokens": [0, 1, 2], "token_strs": ["a", "b", "c"]}
    assert server.ask("POST", "/detokenize", {"tokens": [0, 1, 2]}).json() == {"prompt": "abc"}
    chat = server.ask("POST", "/tokenize", {"messages": [{"role": "user", "content": "abc"}]}).json()
    assert chat["tokens"] == [0, 1, 2] and "token_strs" not in chat


def test_metrics_have_vllms_names_and_count_what_was_written() -> None:
    with running(FakeEngine()) as server:
        server.complete(max_tokens=9)
        server.complete(max_tokens=9, stop="c")
        text = server.ask("GET", "/metrics").body.decode()
        assert server.ask("HEAD", "/metrics").status == 200
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    label = '{model_name="tiny"}'
    assert float(values[f"vllm:prompt_tokens_total{label}"]) == 6
    assert float(values[f"vllm:generation_tokens_total{label}"]) == 9 + 3
    assert float(values['vllm:request_success_total{finished_reason="length",model_name="tiny"}']) == 1
    assert float(values['vllm:request_success_total{finished_reason="stop",model_name="tiny"}']) == 1
    assert float(values[f"vllm:spec_decode_num_drafts_total{label}"]) == 6 + 2
    assert float(values['vllm:spec_decode_num_accepted_tokens_per_pos_total{model_name="tiny",position="0"}']) == 4
    for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"):
        assert float(values[f"vllm:{name}{label}"]) == 0
    for name in (
        "time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds",
        "request_queue_time_seconds", "request_prefill_time_seconds", "request_decode_time_seconds",
        "request_prompt_tokens", "request_generation_tokens",
    ):  # fmt: skip
        assert float(values[f"vllm:{name}_count{label}"]) >= 2, name
    assert float(values['euryale:step_seconds_total{model_name="tiny",part="draft"}']) > 0
