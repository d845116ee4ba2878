"""Requests of mixed settings, what the engine answers to each alone, and a client that asks them all at once.

Not a test file itself.
"""

import asyncio
import random
from typing import Any, NamedTuple

import httpx
from on_loopback import MODEL

from euryale.data.rows import Message
from euryale.data.tokens import prompt_ids
from euryale.decoding.engine import Engine


class Asked(NamedTuple):
    """A request, and what the engine answers to it alone."""

    path: str
    fields: dict[str, Any]
    texts: list[str]
    reasons: list[str]
    num_tokens: int


def random_request(rng: random.Random, engine: Engine) -> Asked:
    """Mixed settings of everything that decides a text."""
    vocab_size = engine.base.vocab_size
    is_chat = rng.random() < 0.3
    num_prompts = 1 if is_chat else rng.choice([1, 1, 1, 2])
    prompts = [[rng.randrange(vocab_size) for _ in range(rng.randint(1, 40))] for _ in range(num_prompts)]
    messages = [{"role": "user", "content": "".join(chr(97 + token % 26) for token in prompts[0])}]
    if is_chat:
        prompts = [prompt_ids(None, (Message(**messages[0]),), engine.base.tokenizer)]
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
        ends["stop_ids"] = [rng.randrange(vocab_size)]
    if rng.random() < 0.3:
        ends["ignore_eos"] = True
    if rng.random() < 0.2:
        sampling["min_new_tokens"] = rng.randint(0, max_tokens)
    rows = [prompt for prompt in prompts for _ in range(n)]
    seeds = [seed + i for i in range(len(rows))]
    known = sampling | {"top_k": max(sampling.get("top_k", 0), 0)}
    answers = engine.generate(rows, max_tokens, seed=seeds, **known, **ends)
    asked = {"messages": messages} if is_chat else {"prompt": prompts}
    fields = {"model": MODEL, "n": n, "seed": seed, "max_tokens": max_tokens, **asked, **sampling, **ends}
    for ours, theirs in (("min_new_tokens", "min_tokens"), ("stop_ids", "stop_token_ids")):
        if ours in fields:
            fields[theirs] = fields.pop(ours)
    fields["logit_bias"] = {str(token): bias for token, bias in sampling.get("logit_bias", {}).items()}
    shown = {"eos": "stop", "stop": "stop", "length": "length", "context": "length"}
    reasons = [shown[answer.finish_reason] for answer in answers]
    path = "/v1/chat/completions" if is_chat else "/v1/completions"
    return Asked(path, fields, [answer.text for answer in answers], reasons, sum(len(answer.ids) for answer in answers))


async def ask_all(url: str, asked: list[Asked]) -> list[Any]:
    """All at once, each streamed and not: texts and reasons of the choices, and the number of tokens."""
    async with httpx.AsyncClient(base_url=url, timeout=120, trust_env=False) as client:
        return await asyncio.gather(*(ask(client, item, is_stream) for item in asked for is_stream in (True, False)))


async def ask(client: httpx.AsyncClient, asked: Asked, is_stream: bool) -> Any:
    if not is_stream:
        answer = (await client.post(asked.path, json=asked.fields)).json()
        choices = answer["choices"]
        texts = [c["text"] if "text" in c else c["message"]["content"] for c in choices]
        return texts, [c["finish_reason"] for c in choices], answer["usage"]["completion_tokens"]
    num = len(asked.texts)
    texts, reasons, usage = [""] * num, [""] * num, None
    body = asked.fields | {"stream": True, "stream_options": {"include_usage": True}}
    async with client.stream("POST", asked.path, json=body) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                event = httpx.Response(200, content=line.removeprefix("data: ")).json()
                usage = event["usage"] or usage
                for choice in event["choices"]:
                    texts[choice["index"]] += choice["text"] if "text" in choice else choice["delta"].get("content", "")
                    reasons[choice["index"]] += choice["finish_reason"] or ""
    assert usage is not None
    return texts, reasons, usage["completion_tokens"]
