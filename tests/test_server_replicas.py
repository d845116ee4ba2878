"""What surrounds replicas of a server: one exposition of all, and a proxy's own answers in the shape of ours."""

import asyncio
import json
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from euryale.server.asgi import Receive, Scope, Send
from euryale.server.replica_metrics import SILENT_SECONDS, Board, Told, merge
from euryale.server.replica_proxy import Lost

ONE = '# HELP a:b_total Things.\n# TYPE a:b_total counter\na:b_total{model_name="m"} 3.0\n'
TWO = ONE.replace("3.0", "4.0")


def test_metrics_of_replicas_become_one_exposition_with_a_label() -> None:
    text = merge({"r2": TWO, "r1": ONE}).decode()
    assert text.count("# TYPE") == 1
    [family] = text_string_to_metric_families(text)
    assert [(sample.labels["replica"], sample.value) for sample in family.samples] == [("r1", 3.0), ("r2", 4.0)]
    assert all(sample.labels["model_name"] == "m" for sample in family.samples)


def test_a_board_forgets_the_metrics_of_a_replica_that_is_gone_but_not_what_it_did(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    board = Board()
    board.tell("r1", Told(ONE, 2, 20, False))
    assert board.tell("r2", Told(TWO, 1, 5, False)) == ({"r1": ONE, "r2": TWO}, False)
    board.begin_drain()
    now += SILENT_SECONDS
    assert board.tell("r2", Told(TWO, 3, 9, True)) == ({"r2": TWO}, True)
    assert board.is_drained() and board.totals() == (5, 29)


def through_proxy(messages: list[dict[str, Any]], path: str = "/v1/completions") -> list[dict[str, Any]]:
    """What a client gets where the proxy sends these."""
    sent: list[Any] = []

    async def proxy(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    asyncio.run(Lost(proxy)({"type": "http", "path": path, "method": "POST", "headers": []}, receive, send))
    return sent


def start(status: int, kind: str) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": [(b"content-type", kind.encode())]}


def body(text: str, more_body: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": text.encode(), "more_body": more_body}


@pytest.mark.parametrize("said", [[], [start(404, "text/plain"), body("no such path")], [start(503, "text/plain")]])
def test_what_a_proxy_says_without_a_replica_is_503_with_a_time_to_retry(said: list[dict[str, Any]]) -> None:
    head, content = through_proxy(said)
    assert head["status"] == 503 and b"retry-after" in dict(head["headers"])
    assert json.loads(content["body"])["error"]["code"] == "replica_lost"


def test_a_stream_that_was_cut_off_ends_with_an_error_event() -> None:
    cut = [start(200, "text/event-stream; charset=utf-8"), body("data: {}\n\n", more_body=True)]
    *sent, last = through_proxy(cut)
    assert sent == cut and not last["more_body"]
    event, done = last["body"].decode().split("\n\n")[:2]
    assert json.loads(event.removeprefix("data: "))["error"]["code"] == "replica_lost" and done == "data: [DONE]"


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/v1/completions", [start(200, "application/json"), body("{}")]),
        ("/v1/completions", [start(503, "application/json"), body("{}")]),
        ("/v1/completions", [start(200, "text/event-stream"), body("data: 1\n\n", True), body("data: [DONE]\n\n")]),
        ("/v1/completions", [start(200, "application/json"), body("{", more_body=True)]),
        ("/metrics", [start(200, "text/plain; version=0.0.4"), body("a 1\n")]),
        ("/ready", [start(503, "text/plain"), body("not ready")]),
        ("/-/healthz", [start(503, "text/plain"), body("draining")]),
    ],
)
def test_answers_of_replicas_pass_as_they_are(path: str, answer: list[dict[str, Any]]) -> None:
    assert through_proxy(answer, path) == answer
