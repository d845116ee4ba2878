"""The text over HTTP, streamed or not, is the text of Engine.generate, whatever else is decoded at the same time."""

import asyncio
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from live_client import hear_run, ready, say
from mixed_requests import ask_all, random_request
from on_loopback import MODEL, Running, running
from random_models import HEAD_DESIGNS, letter_tokenizer, random_base, random_heads, random_tree

from euryale.decoding.engine import Engine
from euryale.decoding.sampling import Sampling
from euryale.errors import UserError
from euryale.server.backend import Job
from euryale.server.scheduler_adapter import SchedulerAdapter

VOCAB_SIZE = 30
NUM_REQUESTS = 60


@pytest.fixture(scope="module")
def engine() -> Engine:
    base = random_base(vocab_size=VOCAB_SIZE, max_length=160, eos=4, seed=3)
    heads = random_heads(HEAD_DESIGNS[0], base, seed=1)
    return Engine(base, heads, "heads", random_tree(random.Random(5), 4, 3, 9))


@pytest.fixture(scope="module")
def server(engine: Engine) -> Iterator[Running]:
    backend = SchedulerAdapter(engine, MODEL, num_rows=6, row_tokens=160, temperature=0.0)
    tokenizer = letter_tokenizer(VOCAB_SIZE)
    with running(backend, tokenizer=tokenizer, vocab_size=VOCAB_SIZE, max_waiting=1000, warm_up=True) as started:
        yield started


def test_mixed_requests_at_once_are_what_the_engine_writes_alone(server: Running, engine: Engine) -> None:
    rng = random.Random(11)
    asked = [random_request(rng, engine) for _ in range(NUM_REQUESTS)]
    assert {reason for item in asked for reason in item.reasons} == {"stop", "length"}
    answers = asyncio.run(ask_all(server.url, asked))
    for i, answer in enumerate(answers):
        item = asked[i // 2]  # each was asked twice, streamed and not
        assert answer == (item.texts, item.reasons, item.num_tokens), item.fields


def test_an_engine_that_was_made_anew_writes_the_same_text(
    server: Running, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step of the scheduler raises once; the next request is answered as ever."""
    fields: dict[str, Any] = {"prompt": [3, 1, 4], "max_tokens": 20, "seed": 5}
    expected = engine.generate([[3, 1, 4]], 20, seed=5, temperature=1.0)[0].text
    assert server.complete(**fields).json()["choices"][0]["text"] == expected

    def fail() -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(server.backend._scheduler, "step", fail)
        assert server.complete(**fields).status == 500
    assert server.complete(**fields).json()["choices"][0]["text"] == expected


@pytest.mark.parametrize("with_drafter", [True, False])
def test_a_job_writes_the_same_text_with_and_without_drafter(engine: Engine, with_drafter: bool) -> None:
    """The adapter by itself, text piece by piece."""
    backend = SchedulerAdapter(engine, MODEL, num_rows=2, row_tokens=64, temperature=0.0)
    sampling = Sampling(temperature=0.9)
    job = Job([3, 1, 4], 30, sampling, seed=8, wants_text=True, with_drafter=with_drafter)
    backend.start(job)
    progress = []
    while backend.num_live:
        progress += backend.step()
    expected = engine.generate([[3, 1, 4]], 30, seed=8, temperature=0.9)[0]
    ending = progress[-1].ending
    assert ending is not None and ending.text == expected.text == "".join(item.text for item in progress)
    assert ending.ids == expected.ids == [token for item in progress for token in item.ids]
    assert len(ending.accepted) == len(ending.nodes) == len(progress)
    assert len(set(ending.nodes)) == 1 and (ending.nodes[0] > 1) == with_drafter
    assert backend.seconds()["verify"] > 0


def test_a_cancelled_job_leaves_its_row_to_the_next(engine: Engine) -> None:
    backend = SchedulerAdapter(engine, MODEL, num_rows=1, row_tokens=64, temperature=0.0)
    for seed in range(3):
        job = Job([3, 1, 4], 30, Sampling(temperature=0.9), seed)
        backend.start(job)
        backend.step()
        backend.cancel(job)
        backend.cancel(job)
        assert backend.num_live == 0
    with pytest.raises(UserError, match="rows of this scheduler hold 64"):
        backend.start(Job([1] * 60, 30, Sampling(), 0))


def test_errors_call_the_base_by_its_served_name() -> None:
    base = random_base(vocab_size=VOCAB_SIZE, max_length=64)
    with torch.no_grad():
        base.lm_head_weight.fill_(float("nan"))
    backend = SchedulerAdapter(Engine(base, drafter="none"), "served-name", num_rows=1, row_tokens=64, temperature=0.0)
    backend.start(Job([1, 2], 4, Sampling(), 0))
    failure = backend.step()[0].failure
    assert failure is not None and not failure.is_users
    assert "served-name" in failure.message and base.path not in failure.message


def test_settings_that_forbid_every_token_are_the_users_mistake(engine: Engine) -> None:
    backend = SchedulerAdapter(engine, MODEL, num_rows=1, row_tokens=64, temperature=0.0)
    bias = {token: float("-inf") for token in range(VOCAB_SIZE)}
    with pytest.raises(UserError, match="they forbid all"):
        backend.start(Job([1, 2], 4, Sampling(logit_bias=bias), 0))


def test_both_runs_of_a_comparison_on_the_socket_are_the_engines_text(server: Running, engine: Engine) -> None:
    expected = engine.generate("bad", 12, seed=4, temperature=0.8)[0]
    sampling = {"max_tokens": 12, "seed": 4, "temperature": 0.8}
    with ready(server) as client:
        say(client, type="generate", id="g1", prompt="bad", sampling=sampling, compare=True)
        ends = [hear_run(client)[2] for _ in range(2)]
    assert [end["run"] for end in ends] == ["ar", "heads"]
    assert [end["text"] for end in ends] == [expected.text] * 2 and ends[0]["ids"] == ends[1]["ids"] == expected.ids
    assert ends[0]["steps"] > ends[1]["steps"] or ends[1]["steps"] == len(expected.accepted)


def test_logprobs_over_http_are_the_engines(server: Running, engine: Engine) -> None:
    """lm-eval's request: id lists, echo, one token. Prompt and answer in one list, the first without a number."""
    prompts = [[3, 1, 4, 1, 5, 9, 2, 6], [7]]
    fields: dict[str, Any] = {"prompt": prompts, "max_tokens": 1, "logprobs": 2, "echo": True, "temperature": 0}
    choices = server.complete(**fields).json()["choices"]
    answers = engine.generate(prompts, 1, logprobs=2)
    for prompt, answer, choice in zip(prompts, answers, choices, strict=True):
        found = choice["logprobs"]["token_logprobs"]
        assert len(found) == len(prompt) + 1 and found[0] is None
        # Float32 in other batches and by other forwards, whose order each processor chooses: some 1e-5 of scores
        # of size 1. The number of another token or place is off by tenths.
        assert found[-1] == pytest.approx(answer.logprobs[0].logprob, abs=1e-3)
        with torch.inference_mode():
            log_p = engine.base.model(torch.tensor([prompt])).logits[0].log_softmax(-1)
        expected = log_p[:-1].gather(1, torch.tensor(prompt[1:])[:, None])[:, 0].tolist()
        assert found[1:-1] == pytest.approx(expected, abs=1e-3)
    chat = server.chat(logprobs=True, top_logprobs=3, max_tokens=9, seed=2).json()["choices"][0]
    content = chat["logprobs"]["content"]
    assert 0 < len(content) <= 9 and all(len(item["top_logprobs"]) == 3 for item in content)


def test_the_steps_on_the_socket_make_up_the_answer(server: Running, engine: Engine) -> None:
    expected = engine.generate("bad", 12, seed=4, temperature=0.8)[0]
    with ready(server) as client:
        say(client, type="generate", id="g1", prompt="bad", sampling={"max_tokens": 12, "seed": 4, "temperature": 0.8})
        _, steps, end = hear_run(client)
    ids = []
    for step in steps:
        ids += [node["token"] for node in step["nodes"] if node["state"] == "accepted"]
        ids += [step["bonus"]["token"]] if step["bonus"] else []
        assert len(step["nodes"]) == engine.num_nodes()
    assert ids == expected.ids == end["ids"] and len(steps) == len(expected.accepted)
    assert "".join(step["missed"] + step["text"] for step in steps) + end["missed"] == expected.text
    assert steps[0]["parts_ms"]["prefill"] > 0


def test_a_second_turn_says_how_much_was_cached_and_is_the_same_text() -> None:
    base = random_base(vocab_size=VOCAB_SIZE, hidden_size=64, max_length=500, seed=3)
    if not base.is_exact:
        pytest.skip("this machine does not prove equal bits for this dtype")
    engine = Engine(base, drafter="lookup")
    backend = SchedulerAdapter(engine, MODEL, 2, 500, 0.0, prefix_tokens=1000)
    prompt = [(7 * place) % VOCAB_SIZE for place in range(200)]
    with running(backend, tokenizer=letter_tokenizer(VOCAB_SIZE), vocab_size=VOCAB_SIZE) as server:
        found = []
        for _ in range(2):
            answer = server.complete(prompt=prompt, max_tokens=20, temperature=0, return_token_ids=True).json()
            found.append(answer["usage"]["prompt_tokens_details"]["cached_tokens"])
            assert answer["choices"][0]["token_ids"] == engine.generate([prompt], 20)[0].ids
            prompt = [*prompt, *answer["choices"][0]["token_ids"], 1, 2, 3]
    assert found == [0, 192]
