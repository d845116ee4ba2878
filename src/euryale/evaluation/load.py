"""Load on an OpenAI-compatible server: closed loops of so many clients, or open ones of so many requests a second.

In a closed loop every client asks again as soon as it was answered, so a slow server is asked less. In an open loop
requests come at random (Poisson) times whatever the server does, so a slow server's queue grows.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, quantiles
from typing import Any

import httpx

from euryale.data.prompt_files import Prompt
from euryale.errors import UserError
from euryale.evaluation.load_client import Asked, Timed, ask

CONNECT_S = 10.0
AskNumber = Callable[[int], Awaitable[Timed]]  # asks prompt number i, counted round


@dataclass(frozen=True)
class Target:
    """A server: its base address, with /v1, and how to ask it."""

    url: str
    asked: Asked
    key: str | None = None
    timeout_s: float = 600.0

    def client(self) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        timeout = httpx.Timeout(self.timeout_s, connect=CONNECT_S)
        return httpx.AsyncClient(base_url=self.url, headers=headers, timeout=timeout, limits=limits)


def find_model(url: str, key: str | None) -> str:
    """The first model that a server names. Raises UserError where there is no such server."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        answer = httpx.get(f"{url}/models", headers=headers, timeout=CONNECT_S)
        answer.raise_for_status()
        return str(answer.json()["data"][0]["id"])
    except httpx.HTTPStatusError as error:
        raise UserError(
            f"url={url} answers {error.response.status_code} to GET /models. Set api_key_variable to the name of the "
            "environment variable that holds the key, or give model=NAME."
        ) from error
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"url={url} must be the address of an OpenAI-compatible server; GET /models failed "
            f"({type(error).__name__}). Give it with /v1, as http://127.0.0.1:8000/v1."
        ) from error


def closed_loop(target: Target, prompts: Sequence[Prompt], num_clients: int, num_requests: int) -> list[Timed]:
    """So many requests by so many clients that ask one after another."""

    async def run(ask_number: AskNumber) -> list[Timed]:
        numbers = iter(range(num_requests))

        async def client() -> list[Timed]:
            return [await ask_number(number) for number in numbers]

        return [timed for part in await asyncio.gather(*(client() for _ in range(num_clients))) for timed in part]

    return asyncio.run(_with_client(target, prompts, run))


def open_loop(target: Target, prompts: Sequence[Prompt], rate: float, num_requests: int, seed: int) -> list[Timed]:
    """So many requests at random times, `rate` a second on average."""

    async def run(ask_number: AskNumber) -> list[Timed]:
        rng, tasks, due = random.Random(seed), [], time.perf_counter()
        for number in range(num_requests):
            await asyncio.sleep(max(due - time.perf_counter(), 0.0))
            tasks.append(asyncio.ensure_future(ask_number(number)))
            due += rng.expovariate(rate)
        return await asyncio.gather(*tasks)

    return asyncio.run(_with_client(target, prompts, run))


async def _with_client(
    target: Target,
    prompts: Sequence[Prompt],
    run: Callable[[Callable[[int], Awaitable[Timed]]], Awaitable[list[Timed]]],
) -> list[Timed]:
    async with target.client() as client:
        origin = time.perf_counter()

        async def ask_number(number: int) -> Timed:
            place = number % len(prompts)
            return await ask(client, target.asked, prompts[place], place, origin)

        return await run(ask_number)


def summarise(timed: Sequence[Timed]) -> dict[str, Any]:
    """One level: speeds and times of the requests that were answered to their end, and what became of the others."""
    good = [item for item in timed if item.error is None]
    ends = [item.started + (item.seconds or 0.0) for item in timed]
    seconds = max(ends) - min(item.started for item in timed) if timed else 0.0
    taus = [(item.tau, item.num_tokens) for item in good if item.tau is not None]
    num_steps = sum(tokens / tau for tau, tokens in taus if tau)
    return {
        "requests": len(timed),
        "answered": len(good),
        "errors": dict(Counter(item.error for item in timed if item.error is not None)),
        "seconds": seconds,
        "tokens": sum(item.num_tokens for item in good),
        "tokens_per_s": sum(item.num_tokens for item in good) / seconds if seconds else None,
        "requests_per_s": len(good) / seconds if seconds else None,
        "ttft_s": spread([item.first_token for item in good]),
        "per_token_s": spread([item.per_token for item in good]),
        "latency_s": spread([item.seconds for item in good]),
        "tau": sum(tokens for _, tokens in taus) / num_steps if num_steps else None,
    }


def spread(values: Sequence[float | None]) -> dict[str, float] | None:
    """Mean, median, 95th and 99th percentile; None where there is no value."""
    known = sorted(value for value in values if value is not None)
    if not known:
        return None
    cuts = quantiles(known, n=100, method="inclusive") if len(known) > 1 else [known[0]] * 99
    return {"mean": fmean(known), "p50": cuts[49], "p95": cuts[94], "p99": cuts[98]}


def same_texts(ours: Sequence[Timed], theirs: Sequence[Timed]) -> dict[str, Any]:
    """How many prompts two servers answered with the same text, of those that both answered."""
    texts = {item.prompt: item.text for item in theirs if item.error is None}
    pairs = [(item, texts[item.prompt]) for item in ours if item.error is None and item.prompt in texts]
    different = sorted({item.prompt for item, text in pairs if item.text != text})
    return {"compared": len(pairs), "equal": sum(item.text == text for item, text in pairs), "different": different}
