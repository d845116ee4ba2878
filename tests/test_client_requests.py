"""What other programs send, field for field as it was recorded, and what each of them reads in the answer.

docs/clients.md has their versions and how they are run against a real model; here a fake engine answers.
"""

from collections.abc import Iterator
from typing import Any

import pytest
from on_loopback import MODEL, Running, running

USAGE = {"include_usage": True}
PARTS = [{"role": "user", "content": [{"type": "text", "text": "abc"}]}]
COMPLETIONS, CHATS = "/v1/completions", "/v1/chat/completions"
STREAMED: dict[str, tuple[str, dict[str, Any]]] = {
    "aiperf completions": (COMPLETIONS, {"prompt": "abc", "max_tokens": 4, "stream_options": USAGE}),
    "aiperf chat": (
        CHATS,
        {"messages": [{"role": "user", "content": "abc"}], "max_completion_tokens": 4, "stream_options": USAGE},
    ),
    "guidellm": (
        CHATS,
        {
            "messages": PARTS, "max_completion_tokens": 4, "ignore_eos": True,
            "stream_options": USAGE | {"continuous_usage_stats": True},
        },
    ),
    "vllm bench openai": (
        COMPLETIONS,
        {
            "prompt": "abc", "repetition_penalty": 1.0, "max_tokens": 4, "logprobs": None, "stream_options": USAGE,
            "ignore_eos": True, "temperature": 0.0,
        },
    ),
    "vllm bench openai-chat": (
        CHATS,
        {
            "messages": PARTS, "max_completion_tokens": 4, "stream_options": USAGE, "ignore_eos": True,
            "temperature": 0.0,
        },
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running() as started:
        yield started


@pytest.mark.parametrize("name", STREAMED)
def test_benchmarks_read_a_first_token_and_the_usage(server: Running, name: str) -> None:
    """The first event has text, since its time is the first token's; the last one has the counts and no choice."""
    path, fields = STREAMED[name]
    events = server.ask("POST", path, {"model": MODEL, "stream": True} | fields).events()
    first, last = events[0]["choices"][0], events[-1]
    assert first["text"] if path == COMPLETIONS else first["delta"]["content"]
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == 4
    assert {"mean_acceptance_length", "draft_acceptance_rate"} <= set(last["metrics"]["speculative_decoding"])
    if "continuous_usage_stats" in fields["stream_options"]:
        assert all(event["usage"]["prompt_tokens"] == last["usage"]["prompt_tokens"] for event in events)


def test_lm_eval_reads_the_logprobs_of_its_ids_and_one_more(server: Running) -> None:
    """It sums [context:-1] of each list, and calls an answer greedy where a token's logprob is the largest ranked."""
    prompts = [[0, 1, 2, 3], [0, 1, 2], [0, 1]]
    fields = {"prompt": prompts, "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
    choices = server.complete(**fields).json()["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2]
    for prompt, choice in zip(prompts, choices, strict=True):
        found = choice["logprobs"]
        assert len(found["token_logprobs"]) == len(found["top_logprobs"]) == len(prompt) + 1
        assert found["token_logprobs"][0] is None and found["top_logprobs"][0] is None
        for logprob, top in zip(found["token_logprobs"][1:], found["top_logprobs"][1:], strict=True):
            assert logprob == max(top.values())


@pytest.mark.parametrize("path", [COMPLETIONS, CHATS])
def test_lm_eval_writes_until_its_stops(server: Running, path: str) -> None:
    """The name of a special token is among the stops."""
    asked = {"prompt": [[0, 1, 2]]} if path == COMPLETIONS else {"messages": [{"role": "user", "content": "abc"}]}
    fields = {"model": MODEL, "max_tokens": 24, "temperature": 0.0, "stop": ["ca", "</s>"], "seed": 1234}
    choice = server.ask("POST", path, fields | asked).json()["choices"][0]
    text = choice["text"] if path == COMPLETIONS else choice["message"]["content"]
    assert (text, choice["finish_reason"]) == ("ab", "stop")


def test_probes_of_benchmarks_are_answered(server: Running) -> None:
    """aiperf looks for /metrics, guidellm for /health; vllm bench counts tokens, and lives without /tokenizer_info."""
    assert server.ask("HEAD", "/metrics").status == server.ask("GET", "/health").status == 200
    assert server.ask("GET", "/tokenizer_info").status == 404
    asked = {"model": MODEL, "prompt": "abc", "add_special_tokens": False}
    assert server.ask("POST", "/tokenize", asked).json()["tokens"] == [0, 1, 2]
    assert server.ask("GET", "/v1/models").json()["data"][0]["max_model_len"] == 256
    text = server.ask("GET", "/metrics").body.decode()
    for name in ("num_drafts", "num_draft_tokens", "num_accepted_tokens", "num_accepted_tokens_per_pos"):
        assert f"\nvllm:spec_decode_{name}_total{{" in text, name


def test_no_answer_is_shorter_than_was_asked(server: Running) -> None:
    """min_tokens and ignore_eos are how a benchmark gets answers of one length."""
    answer = server.complete(max_tokens=7, min_tokens=7, ignore_eos=True).json()
    assert answer["usage"]["completion_tokens"] == 7 and answer["choices"][0]["finish_reason"] == "length"
    assert server.backend.started[-1].ignore_eos and server.backend.started[-1].sampling.min_new_tokens == 7
