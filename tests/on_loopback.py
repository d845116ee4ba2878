"""Runs a server in a thread on a free port of loopback, for tests. Not a test file itself."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fake_engine import TOKENIZER, VOCAB_SIZE, FakeEngine
from transformers import PreTrainedTokenizerBase

from euryale.server.app import build_app
from euryale.server.backend import Backend
from euryale.server.config import ServerConfig
from euryale.server.limits import Timeouts
from euryale.server.page import FOLDER
from euryale.server.run import DrainingServer, make_server
from euryale.server.service import ModelName, Service
from euryale.server.tokens import Tokens

MODEL = "tiny"


@dataclass
class Reply:
    """An answer that was read whole."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The envelope's content; fails where the answer has no envelope."""
        assert self.headers["content-type"] == "application/json", self.body
        assert set(self.json()) == {"error"}
        assert set(self.json()["error"]) == {"message", "type", "param", "code"}
        return self.json()["error"]

    def events(self) -> list[Any]:
        """The events of a stream that ended as it should."""
        pieces = self.body.decode().split("\n\n")
        assert pieces[-2:] == ["data: [DONE]", ""], pieces[-3:]
        return [json.loads(piece.removeprefix("data: ")) for piece in pieces[:-2]]


@dataclass
class Running:
    """A server that listens, and what it was made of."""

    server: DrainingServer
    service: Service
    backend: Any
    port: int
    thread: threading.Thread

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Reply:
        """One request on a connection of its own; bytes go out as they are, everything else as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        sent = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        default = {"Content-Type": "application/json"} if sent is not None else {}
        try:
            connection.request(method, path, sent, default | (headers or {}))
            answer = connection.getresponse()
            return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def complete(self, **fields: Any) -> Reply:
        return self.ask("POST", "/v1/completions", {"model": MODEL, "prompt": "abc"} | fields)

    def chat(self, **fields: Any) -> Reply:
        messages = [{"role": "user", "content": "abc"}]
        return self.ask("POST", "/v1/chat/completions", {"model": MODEL, "messages": messages} | fields)

    def connect(self, receive_buffer: int | None = None) -> socket.socket:
        """A bare connection."""
        client = socket.socket()
        if receive_buffer is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.settimeout(20)
        client.connect(("127.0.0.1", self.port))
        return client

    def wait_until(self, condition: Any, seconds: float = 20.0) -> None:
        """Polls; a test fails by name where it never comes true."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "the condition never came true"
            time.sleep(0.005)


@contextmanager
def running(
    backend: Backend | None = None,
    config: ServerConfig | None = None,
    timeouts: Timeouts | None = None,
    tokenizer: PreTrainedTokenizerBase = TOKENIZER,
    vocab_size: int = VOCAB_SIZE,
    max_waiting: int = 60,
    warm_up: bool = False,
    page: Path = FOLDER,
) -> Iterator[Running]:
    """A server around a backend, by default a FakeEngine; it is gone when the block ends."""
    backend = backend if backend is not None else FakeEngine()
    config = config or ServerConfig()
    config.port = 0
    tokens = Tokens(tokenizer, vocab_size, tokenizer.bos_token_id)
    service = Service(backend, tokens, ModelName(MODEL, 1, "0"), max_waiting, timeouts, warm_up)
    server = make_server(service, build_app(service, config, page), config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.monotonic() + 20
    while not server.started:
        assert thread.is_alive() and time.monotonic() < end, "the server did not start"
        time.sleep(0.002)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield Running(server, service, backend, port, thread)
    finally:
        server.should_exit = True
        if isinstance(backend, FakeEngine):
            backend.blocked.set()
        thread.join(15)
        assert not thread.is_alive(), "the server did not stop"
