"""Writers of a training set: our own engine, or a server that has the base already.

A server is asked for completions of token ids (POST /v1/completions, as vLLM, SGLang and llama.cpp answer it), so that
the chat template is ours and what is learned is exactly what was asked.
"""

import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import httpx

from euryale.base.base import Base
from euryale.base.base_info import UnloadedBase
from euryale.decoding.engine import Engine
from euryale.errors import UserError

TIMEOUT_S = 600.0
MAX_TOGETHER = 64  # requests under way
WAITS_S = (1.0, 2.0, 4.0, 8.0, 16.0)
log = logging.getLogger(__name__)


class Answer(NamedTuple):
    """What was written after a prompt. `ends` says that the writer had finished, and was not cut off."""

    ids: list[int]
    text: str
    ends: bool


class Writer(Protocol):
    def write(
        self, prompts: list[list[int]], new_tokens: int, temperature: float, seeds: Sequence[int]
    ) -> list[Answer]: ...


class EngineWriter:
    """Our own engine, without drafts: a large batch leaves nothing for them to gain."""

    def __init__(self, base: Base, num_rows: int) -> None:
        """num_rows: answers that are written at once, at most; one that has ended costs nothing more."""
        self._engine = Engine(base, drafter="none", max_rows=num_rows)

    def write(
        self, prompts: list[list[int]], new_tokens: int, temperature: float, seeds: Sequence[int]
    ) -> list[Answer]:
        generations = self._engine.generate(prompts, new_tokens, seed=list(seeds), temperature=temperature)
        return [Answer(g.ids, g.text, g.finish_reason in ("eos", "stop")) for g in generations]


class ServerWriter:
    """An OpenAI-compatible server at `url` (".../v1"). Raises UserError when it is not there, or refuses."""

    def __init__(self, url: str, model: str | None, base: Base | UnloadedBase) -> None:
        self._url = url.rstrip("/")
        self._client = httpx.Client(timeout=TIMEOUT_S, follow_redirects=True)
        self._tokenizer = base.tokenizer
        own = base.tokenizer.eos_token_id
        self._eos_ids = base.eos_ids
        self._end = [own] if own in base.eos_ids else list(base.eos_ids[:1])
        models = [entry.get("id") for entry in self._ask("/models").get("data", [])]
        if model is not None and model not in models:
            raise UserError(f"regenerate.model={model}: {url} serves {', '.join(map(str, models)) or 'no model'}.")
        if not models:
            raise UserError(f"regenerate.url={url} serves no model. Start one there, or leave regenerate.url out.")
        self._model = model or models[0]
        log.info("%s answers at %s", self._model, url)

    def write(
        self, prompts: list[list[int]], new_tokens: int, temperature: float, seeds: Sequence[int]
    ) -> list[Answer]:
        with ThreadPoolExecutor(min(MAX_TOGETHER, len(prompts))) as threads:
            asked = [
                threads.submit(self._complete, prompt, new_tokens, temperature, seed)
                for prompt, seed in zip(prompts, seeds, strict=True)
            ]
            return [future.result() for future in asked]

    def _complete(self, prompt: list[int], new_tokens: int, temperature: float, seed: int) -> Answer:
        content = {
            "model": self._model, "prompt": prompt, "max_tokens": new_tokens, "temperature": temperature,
            "seed": seed % 2**31, "return_token_ids": True,
        }  # fmt: skip
        reply = self._ask("/completions", content)
        try:
            choice = reply["choices"][0]
            text, ends = str(choice["text"]), choice["finish_reason"] == "stop"
        except (KeyError, IndexError, TypeError) as error:
            raise UserError(f"{self._url}/completions answered without a choice: {str(reply)[:200]}.") from error
        ids = choice.get(
            "token_ids"
        )  # vLLM gives them; else the text is encoded again, which is nearly always the same
        if ids is None:
            ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        if ends and not (ids and ids[-1] in self._eos_ids):
            ids = [*ids, *self._end]
        return Answer(list(ids), text, ends)

    def _ask(self, path: str, content: dict[str, Any] | None = None) -> dict[str, Any]:
        """The JSON of a reply. What may pass (no connection, a busy server) is tried again."""
        for wait_s in (*WAITS_S, None):
            try:
                reply = self._client.request("GET" if content is None else "POST", self._url + path, json=content)
                reply.raise_for_status()
                return reply.json()
            except httpx.HTTPStatusError as error:
                reply = error.response
                problem = f"{reply.status_code} {reply.reason_phrase}: {reply.text[:300]}"
                if reply.status_code < 500 and reply.status_code not in (408, 429):
                    raise UserError(
                        f"regenerate.url={self._url} must take token ids as a prompt, as vLLM, SGLang and llama.cpp "
                        f"do; got {problem} from {path}. Ask another server, or leave regenerate.url out."
                    ) from error
            except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:  # ValueError: the reply is not JSON
                problem = str(error) or type(error).__name__
            if wait_s is not None and content is not None:
                log.warning("%s: %s; trying again in %.0f s", self._url, problem, wait_s)
                time.sleep(wait_s)
            else:
                break
        raise UserError(
            f"regenerate.url={self._url}{path} does not answer ({problem}). Start the server and run this again: what "
            "was written is kept."
        )
