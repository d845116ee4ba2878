"""infer/serve_ray.py: refusals; and two replicas, one of them killed under load, where the extra `ray` is installed."""

import http.client
import importlib.util
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import pytest
from scripts import assert_refused, run_script
from served import Served, served

from euryale.server.config import KEY_VARIABLE

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install -c constraints.txt -e '.[ray]'"
)


@pytest.fixture
def settings(tiny_llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    return ["checkpoint=null", f"base.path={tiny_llama_folder}", "base.device=cpu", "drafter=lookup", "port=0"]


def test_what_cannot_be_started_is_refused(settings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*changes: str) -> str:
        result = run_script("infer/serve_ray.py", *settings, *changes)
        assert_refused(result)
        return result.err

    assert "replicas times cores must be at most the 2 cores of this machine; got 2 x 2" in refused("cores=2")
    assert "replicas must be at least 1; got 0" in refused("replicas=0")
    assert "Name a checkpoint" in refused("drafter=heads")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"port={port} cannot be listened at" in refused(f"port={port}")
    monkeypatch.setitem(sys.modules, "ray", None)  # as where it is not installed
    assert "the package ray is missing" in refused() and "'.[ray]'" in refused()


def ask(server: Served, stream: bool, results: list[tuple[int, str]]) -> None:
    """Adds the status and the text of an answer, or the code of its error event."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    fields = {"model": "tiny", "prompt": "def main(", "max_tokens": 48, "temperature": 0, "stream": stream}
    connection.request("POST", "/v1/completions", json.dumps(fields), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    content = answer.read().decode()
    if answer.status != 200:
        results.append((answer.status, json.loads(content)["error"]["code"]))
        return
    if not stream:
        results.append((200, json.loads(content)["choices"][0]["text"]))
        return
    *events, done = content.strip().split("\n\n")
    assert done == "data: [DONE]", content
    parts = [json.loads(event.removeprefix("data: ")) for event in events]
    error = next((part["error"]["code"] for part in parts if "error" in part), None)
    results.append((503, error) if error else (200, "".join(part["choices"][0]["text"] for part in parts)))


def replicas(server: Served) -> set[str]:
    """Those that the metrics know of."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    return set(re.findall(r'vllm:generation_tokens_total\{.*replica="([^"]+)"', text))


def processes_of_replicas() -> list[int]:
    """Ray names the processes of its actors after them."""
    named = [(int(path.name), path / "cmdline") for path in Path("/proc").glob("[0-9]*")]
    return sorted(pid for pid, line in named if line.exists() and line.read_bytes().startswith(b"ray::ServeReplica"))


@needs_ray
@pytest.mark.slow
def test_a_replica_that_is_killed_under_load_costs_its_own_requests_a_503_and_comes_back() -> None:
    """Every request ends with the text that one replica alone gives, or with 503; a signal ends all of it."""
    base = ["checkpoint=null", "base=tiny", "base.dtype=float32", "base.device=cpu", "drafter=lookup", "model=tiny"]
    sizes = ["replicas=2", "max_model_len=128", "max_rows=2", "port=0", "warm_up=false"]
    with served(*base, *sizes, script="infer/serve_ray.py") as server:
        before = processes_of_replicas()
        assert len(before) == 2
        first: list[tuple[int, str]] = []
        ask(server, False, first)
        [(status, expected)] = first
        assert status == 200 and len(expected) > 20
        results: list[tuple[int, str]] = []
        threads = [threading.Thread(target=ask, args=(server, place % 2 == 0, results)) for place in range(24)]
        for thread in threads:
            thread.start()
            time.sleep(0.05)
        os.kill(before[0], signal.SIGKILL)
        for thread in threads:
            thread.join(120)
        assert len(results) == len(threads), "every request ends"
        assert {text for status, text in results if status == 200} == {expected}
        assert {status for status, _ in results} <= {200, 503}
        deadline = time.monotonic() + 120
        while len(now := processes_of_replicas()) < 2 or len(replicas(server)) < 2:
            assert time.monotonic() < deadline, now
            time.sleep(0.5)
        assert before[1] in now and before[0] not in now
        again: list[tuple[int, str]] = []
        for place in range(8):
            ask(server, place % 2 == 0, again)
        assert again == [(200, expected)] * 8
        server.process.send_signal(signal.SIGTERM)
        assert server.process.stdout is not None
        out = server.process.stdout.read()
        assert server.process.wait(60) == 0
    assert json.loads(out.splitlines()[-1])["num_requests"] >= 8
    assert processes_of_replicas() == []
