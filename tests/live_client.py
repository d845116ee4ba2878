"""A client of the live page's WebSocket, for tests. Not a test file itself."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from on_loopback import Running
from websockets.sync.client import ClientConnection, connect


@contextmanager
def socket_to(server: Running, **options: Any) -> Iterator[ClientConnection]:
    with connect(f"ws://127.0.0.1:{server.port}/ws", proxy=None, open_timeout=20, **options) as client:
        yield client


def say(client: ClientConnection, **message: Any) -> None:
    client.send(json.dumps(message))


def hear(client: ClientConnection, *kinds: str) -> dict[str, Any]:
    """The next message; those of other kinds are left out, where kinds are named."""
    while True:
        message = json.loads(client.recv(timeout=20))
        if message["type"] in kinds or (not kinds and message["type"] != "metrics"):
            return message


@contextmanager
def ready(server: Running) -> Iterator[ClientConnection]:
    with socket_to(server) as client:
        say(client, type="hello", v=1, key=None)
        hear(client, "ready")
        yield client


def hear_run(client: ClientConnection) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any]]:
    """start, steps and end of one run, which must tell the same text."""
    start = hear(client)
    assert start["type"] == "start"
    steps = []
    while (message := hear(client))["type"] == "step":
        steps.append(message)
    assert message["type"] == "end" and (message["id"], message["run"]) == (start["id"], start["run"])
    told = "".join(step["missed"] + step["text"] for step in steps) + message["missed"]
    assert told == message["text"]
    assert message["dropped"] == message["steps"] - len(steps)
    assert sum(step["dropped"] for step in steps) <= message["dropped"]
    return start, steps, message
