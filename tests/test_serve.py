"""infer/serve.py from its command line: refusals, an answer over HTTP, and SIGTERM."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from scripts import ROOT, assert_refused, run_script

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


def test_a_server_answers_drains_at_sigterm_and_says_what_it_did(settings: list[str]) -> None:
    """A stream is open when the signal comes: it is finished before the process ends with status 0."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "infer/serve.py", *settings, "model=tiny"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) as process:  # type: ignore[call-overload]
        watchdog = threading.Timer(120, process.kill)
        watchdog.start()
        try:
            lines = []
            for line in process.stderr:
                lines.append(line)
                if found := re.search(r"serving tiny at http://127\.0\.0\.1:(\d+)", line):
                    break
            else:
                pytest.fail("".join(lines))
            connection = http.client.HTTPConnection("127.0.0.1", int(found.group(1)), timeout=60)
            fields = {"model": "tiny", "prompt": "a b c", "max_tokens": 50, "ignore_eos": True, "stream": True}
            connection.request("POST", "/v1/completions", json.dumps(fields), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            first = answer.read(20)
            process.send_signal(signal.SIGTERM)
            text = first + answer.read()
            out, err = process.communicate()
        finally:
            watchdog.cancel()
    assert text.startswith(b"data: ") and text.endswith(b"data: [DONE]\n\n") and b'"finish_reason":"length"' in text
    assert process.returncode == 0, err
    assert json.loads(out.splitlines()[-1]) == {"num_requests": 1, "num_tokens": 50}
