"""One streamed request to any OpenAI-compatible server, timed as its client sees it."""

import json
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from typing import Any

import httpx

from euryale.data.prompt_files import Prompt

CUT_OFF = "stream cut off"


@dataclass
class Timed:
    """What came of one request. Times are seconds; None: it did not come to that."""

    prompt: int  # its number in the file, from 0
    started: float  # since the level began
    status: int | None = None  # of HTTP; None: there was no answer
    error: str | None = None  # why it does not count; None: it was answered to its end
    first_token: float | None = None
    seconds: float | None = None
    num_tokens: int = 0
    tau: float | None = None  # tokens a step, where the server says so
    text: str = ""

    @property
    def per_token(self) -> float | None:
        """Between two tokens after the first, on average."""
        if self.first_token is None or self.seconds is None or self.num_tokens < 2:
            return None
        return (self.seconds - self.first_token) / (self.num_tokens - 1)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"per_token": self.per_token}


@dataclass(frozen=True)
class Asked:
    """What every request of a load says beside its prompt."""

    model: str
    max_tokens: int
    temperature: float
    seed: int
    ignore_eos: bool

    def body(self, prompt: Prompt, number: int) -> tuple[str, dict[str, Any]]:
        """The path and the body for a prompt; a conversation goes to the chat endpoint."""
        fields: dict[str, Any] = {
            "model": self.model,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "seed": self.seed + number,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.ignore_eos:
            fields["ignore_eos"] = True  # not OpenAI's own: servers that do not know it may refuse it
        if prompt.messages is None:
            return "/completions", fields | {"prompt": prompt.text}
        messages = [{"role": message.role, "content": message.content} for message in prompt.messages]
        return "/chat/completions", fields | {"messages": messages}


async def ask(client: httpx.AsyncClient, asked: Asked, prompt: Prompt, number: int, origin: float) -> Timed:
    """Asks once, without retries. Whatever goes wrong is told in the result."""
    begin = time.perf_counter()
    timed = Timed(number, begin - origin)
    path, body = asked.body(prompt, number)
    try:
        async with client.stream("POST", path, json=body) as response:
            timed.status = response.status_code
            if response.status_code != 200:
                timed.error = f"status {response.status_code}"
                await response.aread()
            else:
                await _read(response, timed, begin)
    except httpx.HTTPError as error:
        timed.error = type(error).__name__
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        timed.error = f"not an OpenAI stream ({type(error).__name__})"
    timed.seconds = time.perf_counter() - begin
    return timed


async def _read(response: httpx.Response, timed: Timed, begin: float) -> None:
    """Reads the stream to its [DONE]. Without one it was cut off, unless it said why it ended, as transformers' do."""
    num_pieces, timed.error = 0, CUT_OFF
    async for event in _events(response):
        if event is None or any(choice.get("finish_reason") for choice in event.get("choices") or []):
            timed.error = timed.error if timed.error != CUT_OFF else None
        if event is None:
            break
        if event.get("error"):
            timed.error = "error in the stream"
            continue
        for choice in event.get("choices") or []:
            piece = choice["text"] if "text" in choice else choice["delta"].get("content")
            if piece:
                num_pieces += 1
                timed.text += piece
                timed.first_token = timed.first_token or time.perf_counter() - begin
        timed.num_tokens = (event.get("usage") or {}).get("completion_tokens", timed.num_tokens)
        timed.tau = _tau(event) or timed.tau
    timed.num_tokens = timed.num_tokens or num_pieces  # a server without usage: its pieces are taken for tokens


async def _events(response: httpx.Response) -> AsyncIterator[dict[str, Any] | None]:
    """The events of a stream; None is its end. Raises ValueError for an event that is not JSON."""
    async for line in response.aiter_lines():
        if line.startswith("data:"):
            data = line.removeprefix("data:").strip()
            yield None if data == "[DONE]" else json.loads(data)


def _tau(event: dict[str, Any]) -> float | None:
    """As our server tells it, or as vLLM's metrics do."""
    own = (event.get("euryale") or {}).get("tau")
    speculation = (event.get("metrics") or {}).get("speculative_decoding") or {}
    tau = own if own is not None else speculation.get("mean_acceptance_length")
    return None if tau is None else float(tau)
