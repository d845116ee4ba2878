"""What the server adds to the bare scheduler: 8 streams of 128 tokens through HTTP against the same 8 without it.

    python tests/server_overhead.py [BASE_FOLDER [DRAFTER [ROUNDS]]]

Both run in this process, on the same engine, in turn; the clients run in a process of their own, as clients do. The
last line is JSON with medians a step: milliseconds by the clock, of CPU, and those in which the engine's thread slept,
which while it has work is waiting for the interpreter's lock. On a busy machine only the last two mean something, and
the shares of the bare scheduler's speed are made of them: `share` where the event loop has a core of its own,
`share_one_core` where it takes its time from the engine's. Linux alone. Not a test file itself.
"""

import json
import statistics
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from on_loopback import MODEL, Running, running

from euryale.base.base import load_base
from euryale.base.config import BaseConfig
from euryale.decoding.engine import Engine
from euryale.server.scheduler_adapter import SchedulerAdapter

NUM_STREAMS, NUM_TOKENS, ROW_TOKENS = 8, 128, 256
NAMES = ["cat", "dog", "girl", "boy", "bird", "fish", "tree", "star"]
PROMPTS = [f"def find_{name}(items):\n    for item in items:\n" for name in NAMES]
CLIENTS = """
import http.client, json, sys, threading
port, bodies = int(sys.argv[1]), json.loads(sys.argv[2])
def ask(body):
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    assert connection.getresponse().read().endswith(b"[DONE]\\n\\n")
for line in sys.stdin:
    threads = [threading.Thread(target=ask, args=(body,)) for body in bodies]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    print("done", flush=True)
"""


class Clock(NamedTuple):
    """Seconds of one thread: by the clock, computing, and ready to compute while others did."""

    wall: float
    cpu: float
    queued: float

    @staticmethod
    def of(thread: threading.Thread) -> "Clock":
        cpu, queued, _ = Path(f"/proc/self/task/{thread.native_id}/schedstat").read_text().split()
        return Clock(time.perf_counter(), int(cpu) / 1e9, int(queued) / 1e9)

    def until(self, end: "Clock", steps: int) -> dict[str, float]:
        """Milliseconds a step."""
        wall, cpu, queued = (1000 * (after - before) / steps for before, after in zip(self, end, strict=True))
        return {"wall_ms": wall, "cpu_ms": cpu, "slept_ms": wall - cpu - queued}


class Watched:
    """A scheduler's or a backend's `step` that notes the thread's clock before the first call and after the last."""

    def __init__(self, step: Callable[[], Any]) -> None:
        self._step = step
        self.begin: Clock | None = None
        self.end: Clock | None = None
        self.num_steps = 0

    def __call__(self) -> Any:
        self.begin = self.begin or Clock.of(threading.current_thread())
        result = self._step()
        self.end = Clock.of(threading.current_thread())
        self.num_steps += 1
        return result

    def told(self) -> dict[str, float]:
        assert self.begin is not None and self.end is not None, "no step was taken"
        return self.begin.until(self.end, self.num_steps)


def main(base_folder: str = "checkpoints/tiny-base", drafter: str = "none", rounds: str = "7") -> None:
    torch.set_num_threads(1)
    base = load_base(BaseConfig(path=base_folder, dtype="float32", device="cpu"))
    engine = Engine(base, drafter=drafter)
    backend = SchedulerAdapter(engine, MODEL, NUM_STREAMS, ROW_TOKENS, 0.0)
    found: dict[str, list[float]] = defaultdict(list)
    with running(backend, tokenizer=base.tokenizer, vocab_size=base.vocab_size, warm_up=True) as server:
        fields = {"model": MODEL, "max_tokens": NUM_TOKENS, "temperature": 0, "stream": True, "ignore_eos": True}
        bodies = json.dumps([fields | {"prompt": prompt} for prompt in PROMPTS])
        command = [sys.executable, "-c", CLIENTS, str(server.port), bodies]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as clients:
            for number in range(int(rounds) + 1):
                alone, through = bare(engine), served(server, clients)
                if number:  # the first round warms up
                    for name, value in (alone | through).items():
                        found[name].append(value)
            assert clients.stdin is not None
            clients.stdin.close()
    result = {name: round(statistics.median(values), 3) for name, values in found.items()}
    names = ("bare_cpu_ms", "bare_slept_ms", "engine_cpu_ms", "engine_slept_ms", "loop_cpu_ms")
    rounds_found = list(zip(*(found[name] for name in names), strict=True))
    result["share"] = round(statistics.median((a + b) / (c + d) for a, b, c, d, _ in rounds_found), 3)
    result["share_one_core"] = round(statistics.median(a / (c + e) for a, _, c, _, e in rounds_found), 3)
    print(json.dumps({"base": base_folder, "drafter": drafter, "rounds": int(rounds)} | result))


def bare(engine: Engine) -> dict[str, float]:
    """The scheduler alone, text included. In a thread, as the engine is: malloc serves the main one in another way."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_bare, engine).result()


def _bare(engine: Engine) -> dict[str, float]:
    scheduler = engine.scheduler(NUM_STREAMS, ROW_TOKENS, chunked_prefill=True)
    requests = [scheduler.submit(prompt, NUM_TOKENS, ignore_eos=True) for prompt in PROMPTS]

    def one() -> None:
        scheduler.step()
        for request in requests:
            request.new_text()

    step = Watched(one)
    while not scheduler.is_idle:
        step()
    return {f"bare_{name}": value for name, value in step.told().items()}


def served(server: Running, clients: subprocess.Popen[str]) -> dict[str, float]:
    """The same through HTTP, and what the event loop's thread did meanwhile."""
    assert clients.stdin is not None and clients.stdout is not None
    original, loop = server.backend.step, Clock.of(server.thread)
    server.backend.step = step = Watched(original)
    clients.stdin.write("go\n")
    clients.stdin.flush()
    assert clients.stdout.readline() == "done\n"
    server.backend.step = original
    loop_ms = loop.until(Clock.of(server.thread), step.num_steps)["cpu_ms"]
    return {f"engine_{name}": value for name, value in step.told().items()} | {"loop_cpu_ms": loop_ms}


if __name__ == "__main__":
    main(*sys.argv[1:])
