"""The text over HTTP, streamed or not, is the text of Engine.generate, whatever else is decoded at the same time."""

import asyncio
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx
import pytest
import torch
from live_client import hear_run, ready, say
from on_loopback import MODEL, Running, running
from random_models import HEAD_DESIGNS, letter_tokenizer, random_base, random_heads, random_tree

from euryale.decoding.engine import Engine
from euryale.decoding.sampling import Sampling
from euryale.errors import UserError
from euryale.server.backend import Job
from euryale.server.scheduler_adapter import SchedulerAdapter

VOCAB_SIZE = 30
NUM_REQUESTS = 60


class Asked(NamedTuple):
    """A request, and what the engine answers to it alone."""

    fields: dict[str, Any]
    texts: list[str]
    reasons: list[str]
    num_tokens: int


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


def random_request(rng: random.Random, engine: Engine) -> Asked:
    """Mixed settings of everything that decides a text."""
    prompts = [[rng.randrange(VOCAB_SIZE) for _ in range(rng.randint(1, 40))] for _ in range(rng.choice([1, 1, 1, 2]))]
    n, seed, max_tokens = rng.choice([1, 1, 2]), rng.randrange(2**53), rng.randint(1, 40)
    sampling: dict[str, Any] = {"temperature": rng.choice([0, 0, 0.7, 1.3])}
    for name, values in (
        ("top_p", [0.8]), ("top_k", [5, -1]), ("min_p", [0.05]), ("repetition_penalty", [1.3]),
        ("presence_penalty", [0.5, -0.5]), ("frequency_penalty", [0.4]), ("logit_bias", [{7: -100.0, 9: 3.0}]),
    ):  # fmt: skip
        if rng.random() < 0.3:
            sampling[name] = rng.choice(values)
    ends: dict[str, Any] = {}
    if rng.random() < 0.4:
        ends["stop"] = ["".join(chr(97 + rng.randrange(26)) for _ in range(rng.randint(1, 2))) for _ in range(2)]
    if rng.random() < 0.2:
        ends["stop_ids"] = [rng.randrange(VOCAB_SIZE)]
    if rng.random() < 0.3:
        ends["ignore_eos"] = True
    if rng.random() < 0.2:
        sampling["min_new_tokens"] = rng.randint(0, max_tokens)
    rows = [prompt for prompt in prompts for _ in range(n)]
    seeds = [seed + i for i in range(len(rows))]
    known = sampling | {"top_k": max(sampling.get("top_k", 0), 0)}
    answers = engine.generate(rows, max_tokens, seed=seeds, **known, **ends)
    fields = {"model": MODEL, "prompt": prompts, "n": n, "seed": seed, "max_tokens": max_tokens, **sampling, **ends}
    for ours, theirs in (("min_new_tokens", "min_tokens"), ("stop_ids", "stop_token_ids")):
        if ours in fields:
            fields[theirs] = fields.pop(ours)
    fields["logit_bias"] = {str(token): bias for token, bias in sampling.get("logit_bias", {}).items()}
    shown = {"eos": "stop", "stop": "stop", "length": "length", "context": "length"}
    reasons = [shown[answer.finish_reason] for answer in answers]
    return Asked(fields, [answer.text for answer in answers], reasons, sum(len(answer.ids) for answer in answers))


async def ask_all(url: str, asked: list[Asked]) -> list[Any]:
    """All at once, every other one streamed: {text, reason} of each choice, and the number of tokens."""
    async with httpx.AsyncClient(base_url=url, timeout=120, trust_env=False) as client:
        return await asyncio.gather(*(ask(client, item.fields, i % 2 == 0) for i, item in enumerate(asked)))


async def ask(client: httpx.AsyncClient, fields: dict[str, Any], is_stream: bool) -> Any:
    if not is_stream:
        answer = (await client.post("/v1/completions", json=fields)).json()
        choices = answer["choices"]
        return [c["text"] for c in choices], [c["finish_reason"] for c in choices], answer["usage"]["completion_tokens"]
    num = len(fields["prompt"]) * fields["n"]
    texts, reasons, usage = [""] * num, [""] * num, None
    body = fields | {"stream": True, "stream_options": {"include_usage": True}}
    async with client.stream("POST", "/v1/completions", json=body) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                event = httpx.Response(200, content=line.removeprefix("data: ")).json()
                usage = event["usage"] or usage
                for choice in event["choices"]:
                    texts[choice["index"]] += choice["text"]
                    reasons[choice["index"]] += choice["finish_reason"] or ""
    assert usage is not None
    return texts, reasons, usage["completion_tokens"]


def test_mixed_requests_at_once_are_what_the_engine_writes_alone(server: Running, engine: Engine) -> None:
    rng = random.Random(11)
    asked = [random_request(rng, engine) for _ in range(NUM_REQUESTS)]
    assert {reason for item in asked for reason in item.reasons} == {"stop", "length"}
    for item, answer in zip(asked, asyncio.run(ask_all(server.url, asked)), strict=True):
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
        assert found[-1] == pytest.approx(answer.logprobs[0].logprob, abs=1e-5)
        with torch.inference_mode():
            log_p = engine.base.model(torch.tensor([prompt])).logits[0].log_softmax(-1)
        expected = log_p[:-1].gather(1, torch.tensor(prompt[1:])[:, None])[:, 0].tolist()
        assert found[1:-1] == pytest.approx(expected, abs=1e-4)
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
