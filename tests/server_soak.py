"""A real server process under overload, clients that leave, and kill -9: python tests/server_soak.py SECONDS TIMES

Not a test file itself: tests/test_server_soak.py runs it for a few seconds. It starts infer/serve.py on a free port of
loopback, measures how many requests a second it answers, asks TIMES as many for SECONDS, and checks that every request
ends with an answer, or with 503 and Retry-After. Then clients leave at random moments, the process is killed in the
middle of a stream, and started again on the same port. A greedy answer is the same before and after each of them.
Further arguments are settings of infer/serve.py. Prints what happened as JSON.
"""

import asyncio
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import httpx
import psutil

ROOT = Path(__file__).resolve().parents[1]
DEFAULT = [
    "checkpoint=null",
    "base=tiny",
    "drafter=lookup",
    "threads=1",
    "max_rows=4",
    "max_waiting=8",
    "max_model_len=256",
]
MODEL = "soak"
PROMPTS = [
    "def read(path):",
    "import os",
    "class Queue:",
    "for line in",
    "x = [1, 2",
    "try:",
    "return self.",
    "while True:",
]
MAX_TOKENS = 24
START_SECONDS = 240.0
ASKED: dict[str, Any] = {"model": MODEL, "max_tokens": MAX_TOKENS, "ignore_eos": True}


@dataclass
class Served:
    """A server process; `start` may be called again after it ended."""

    settings: list[str]
    port: int = 0
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> float:
        """Seconds until it was ready. AssertionError where it never was."""
        begin = time.perf_counter()
        command = [sys.executable, "infer/serve.py", *self.settings, f"model={MODEL}", f"port={self.port}"]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(["src", *sys.path]), "OMP_NUM_THREADS": "1"}
        with tempfile.TemporaryFile() as said:  # not a pipe: a full one would stop the server
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=said, stdout=subprocess.DEVNULL)
            while not (found := re.search(rb"at http://127\.0\.0\.1:(\d+)", _read(said))):
                assert self.process.poll() is None, _read(said).decode()
                assert time.perf_counter() - begin < START_SECONDS, "it never listened"
                time.sleep(0.05)
        self.port = int(found[1])
        self.wait_until_ready()
        return time.perf_counter() - begin

    def wait_until_ready(self) -> None:
        end = time.perf_counter() + START_SECONDS
        with httpx.Client(timeout=10) as client:
            while client.get(f"{self.url}/ready").status_code != 200:
                assert time.perf_counter() < end, "it never was ready"
                time.sleep(0.05)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def memory(self) -> int:
        """Resident bytes."""
        assert self.process is not None
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def kill(self) -> None:
        """SIGKILL."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


def greedy(server: Served) -> str:
    """The text that must never change."""
    asked = ASKED | {"prompt": PROMPTS[0], "temperature": 0}
    return str(httpx.post(f"{server.url}/v1/completions", json=asked, timeout=120).json()["choices"][0]["text"])


async def ask(client: httpx.AsyncClient, number: int) -> str:
    """One request to its end: "answered", "refused" (503 and Retry-After), or what was wrong."""
    fields = ASKED | {"prompt": PROMPTS[number % len(PROMPTS)], "seed": number, "stream": number % 2 == 0}
    begin = time.perf_counter()
    try:
        reply = await client.post("/v1/completions", json=fields)
    except httpx.HTTPError as error:
        return f"{type(error).__name__} after {time.perf_counter() - begin:.1f} s"
    if reply.status_code == 503:
        has_time = 0 < int(reply.headers.get("retry-after", 0)) <= 120
        return "refused" if has_time and reply.json()["error"]["code"] == "overloaded" else "503 without Retry-After"
    if reply.status_code != 200:
        return f"status {reply.status_code}"
    is_whole = reply.text.endswith("data: [DONE]\n\n") if fields["stream"] else bool(reply.json()["choices"])
    return "answered" if is_whole else "cut off"


async def capacity(server: Served, seconds: float, num_clients: int) -> float:
    """Answers a second to clients that ask one after another."""
    async with _client(server) as client:
        end, numbers = time.perf_counter() + seconds, iter(range(1_000_000))

        async def one() -> list[str]:
            told = []
            while time.perf_counter() < end:
                told.append(await ask(client, next(numbers)))
            return told

        begin = time.perf_counter()
        told = [item for part in await asyncio.gather(*(one() for _ in range(num_clients))) for item in part]
        return Counter(told)["answered"] / (time.perf_counter() - begin)


async def overload(server: Served, seconds: float, rate: float) -> tuple[Counter[str], float]:
    """`rate` requests a second, whatever becomes of them; how they ended, and in how many seconds the last one did."""
    async with _client(server) as client:
        begin, tasks = time.perf_counter(), []
        while (now := time.perf_counter() - begin) < seconds:
            while len(tasks) <= now * rate:
                tasks.append(asyncio.ensure_future(ask(client, len(tasks))))
            await asyncio.sleep(0.005)
        told = Counter(await asyncio.gather(*tasks))
        return told, time.perf_counter() - begin


async def leave(server: Served, count: int, seed: int = 1) -> None:
    """Clients that close their connection at a random moment, ten at a time."""
    rng, body = random.Random(seed), json.dumps(ASKED | {"prompt": "abc", "stream": True, "n": 2, "max_tokens": 200})
    head = "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"

    async def one(wait: float, reads: bool) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        await writer.drain()
        if reads:
            await reader.read(10)
        await asyncio.sleep(wait)
        writer.close()

    for start in range(0, count, 10):
        num = min(10, count - start)
        await asyncio.gather(*(one(rng.random() * 0.05, rng.random() < 0.3) for _ in range(num)))


def is_quiet(server: Served) -> bool:
    """No request is being answered or waits."""
    text = httpx.get(f"{server.url}/metrics", timeout=60).text
    counts = re.findall(r"^vllm:num_requests_(?:running|waiting)\{[^}]*\} (\S+)$", text, re.MULTILINE)
    assert len(counts) == 2, text
    return all(float(count) == 0 for count in counts)


def wait_until_quiet(server: Served, seconds: float = 60.0) -> None:
    end = time.perf_counter() + seconds
    while not is_quiet(server):
        assert time.perf_counter() < end, "requests live on"
        time.sleep(0.05)


def kill_in_a_stream(server: Served) -> bool:
    """SIGKILL after the first event. Whether the stream showed that it was cut: it ended without [DONE]."""
    fields = ASKED | {"prompt": "abc", "stream": True, "max_tokens": 200}
    seen = b""
    try:
        with httpx.stream("POST", f"{server.url}/v1/completions", json=fields, timeout=60) as reply:
            for piece in reply.iter_raw():
                if not seen:
                    server.kill()
                seen += piece
    except httpx.HTTPError:
        pass  # what a client sees of it: the connection broke off
    return bool(seen) and b"[DONE]" not in seen


@contextmanager
def another_process(server: Served) -> Iterator[None]:
    """Starts the server again."""
    server.start()
    yield


def soak(
    seconds: float,
    times: float,
    num_leaving: int,
    settings: list[str],
    again: Callable[[Served], AbstractContextManager[None]] = another_process,
) -> dict[str, Any]:
    """Everything, on one server. Raises AssertionError for what must not be. `again`: serves on its port once more."""
    server = Served(settings)
    try:
        first_start = server.start()
        text = greedy(server)
        answered = asyncio.run(capacity(server, min(seconds, 10.0), 4))
        asyncio.run(leave(server, 50))
        wait_until_quiet(server)
        before = server.memory()
        told, took = asyncio.run(overload(server, seconds, answered * times))
        assert set(told) <= {"answered", "refused"}, told
        wait_until_quiet(server)
        assert greedy(server) == text
        asyncio.run(leave(server, num_leaving))
        wait_until_quiet(server)
        assert greedy(server) == text
        after = server.memory()
        assert kill_in_a_stream(server), "the stream must show that it was cut"
        begin = time.perf_counter()
        with again(server):
            second_start = time.perf_counter() - begin
            assert greedy(server) == text
    finally:
        server.kill()
    return {
        "capacity_per_s": round(answered, 2),
        "asked_per_s": round(answered * times, 2),
        **{name: told[name] for name in ("answered", "refused")},
        "last_ended_s": round(took, 1),
        "left": num_leaving,
        "memory_mib": [round(before / 2**20, 1), round(after / 2**20, 1)],
        "ready_s": [round(first_start, 1), round(second_start, 1)],
    }


def _read(file: IO[bytes]) -> bytes:
    """All of a file that another process writes to; where it writes on stays as it is."""
    return os.pread(file.fileno(), 1 << 20, 0)


def _client(server: Served) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.AsyncClient(base_url=server.url, timeout=300, limits=limits)


if __name__ == "__main__":
    duration, factor, *others = sys.argv[1:]
    print(json.dumps(soak(float(duration), float(factor), 1000, others or DEFAULT)))
