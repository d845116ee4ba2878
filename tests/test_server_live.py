"""The WebSocket of the live page, as web/PROTOCOL.md says it."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from fake_engine import INFO, FakeEngine
from live_client import hear, hear_run, ready, say, socket_to
from on_loopback import Running, running
from websockets.exceptions import ConnectionClosed, InvalidStatus

from euryale.server.collector import MAX_STEPS
from euryale.server.config import ServerConfig
from euryale.server.limits import Timeouts

GENERATE = '{"type": "generate", "id": "g1", "prompt": "a", '
QUICK = Timeouts(hello=0.4, metrics=0.05)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(timeouts=QUICK) as started:
        yield started


def test_a_client_that_says_hello_is_told_what_is_served(server: Running) -> None:
    with socket_to(server) as client:
        say(client, type="hello", v=1, key=None)
        assert hear(client) == {
            "type": "ready", "v": 1, "model": "tiny", "drafter": "heads", "max_model_len": 256, "chat": False,
            "lossless": True, "version": "0",
        }  # fmt: skip


def test_a_generation_is_start_steps_and_end(server: Running) -> None:
    with ready(server) as client:
        say(client, type="generate", id="g1", prompt="abc", sampling={"max_tokens": 5, "seed": 9})
        start, steps, end = hear_run(client)
    assert start["queue_ms"] >= 0
    del start["queue_ms"]
    assert start == {
        "type": "start", "id": "g1", "run": "heads", "model": "tiny", "drafter": "heads", "seed": 9, "prompt_tokens": 3,
    }  # fmt: skip
    assert [step["i"] for step in steps] == [0, 1, 2, 3]
    assert [step["text"] for step in steps] == ["a", "bc", "a", "b"]
    times = [step["t_ms"] for step in steps]
    assert times == sorted(times) and end["t_ms"] >= times[-1] and times[0] >= 0
    assert steps[1]["nodes"] == [
        {"token": 0, "text": "a", "parent": -1, "depth": 0, "rank": 0, "p": 1.0, "state": "root"},
        {"token": 1, "text": "b", "parent": 0, "depth": 1, "rank": 0, "p": 0.5, "state": "accepted"},
        {"token": 2, "text": "c", "parent": 0, "depth": 1, "rank": 1, "p": 0.25, "state": "rejected"},
    ]
    assert steps[1]["bonus"] == {"token": 2, "text": "c", "parent": 1, "p": 0.5}
    assert steps[1]["parts_ms"] == {"draft": 1.0, "verify": 2.0}
    assert (end["finish_reason"], end["text"], end["ids"], end["steps"]) == ("length", "abcab", [0, 1, 2, 0, 1], 4)


def test_a_conversation_and_a_stop_string(server: Running) -> None:
    with ready(server) as client:
        messages = [{"role": "user", "content": "abc"}]
        say(client, type="generate", id="g1", messages=messages, sampling={"stop": ["bc"], "temperature": None})
        _, _, end = hear_run(client)
    assert (end["finish_reason"], end["text"]) == ("stop", "a")
    assert server.backend.started[-1].sampling.temperature == 0.0


def test_a_comparison_is_two_runs_with_the_same_seed(server: Running) -> None:
    with ready(server) as client:
        say(client, type="generate", id="g1", prompt="abc", sampling={"max_tokens": 6, "temperature": 1}, compare=True)
        plain, _, first = hear_run(client)
        drafted, _, second = hear_run(client)
    assert [(start["run"], start["drafter"]) for start in (plain, drafted)] == [("ar", "none"), ("heads", "heads")]
    assert plain["seed"] == drafted["seed"] and first["ids"] == second["ids"]
    assert [job.with_drafter for job in server.backend.started[-2:]] == [False, True]


def test_a_server_without_a_drafter_compares_nothing() -> None:
    engine = FakeEngine(INFO._replace(drafter="none", max_depth=0))
    with running(engine) as server, ready(server) as client:
        say(client, type="generate", id="g1", prompt="abc", compare=True)
        error = hear(client)
        assert (error["type"], error["id"], error["error"]["param"]) == ("error", "g1", "compare")
        say(client, type="generate", id="g2", prompt="abc", sampling={"max_tokens": 2})
        assert hear_run(client)[2]["text"] == "ab"


@pytest.mark.parametrize("compare", [False, True])
def test_a_cancelled_generation_ends_where_it_is(compare: bool) -> None:
    engine = FakeEngine(step_seconds=0.01)
    with running(engine) as server, ready(server) as client:
        say(client, type="generate", id="g1", prompt="abc", sampling={"max_tokens": 200}, compare=compare)
        hear(client, "step")
        say(client, type="cancel", id="other")
        hear(client, "step")
        say(client, type="cancel", id="g1")
        end = hear(client, "end")
        assert end["finish_reason"] == "cancelled" and 0 < len(end["ids"]) < 200
        assert ("abc" * 70).startswith(end["text"])
        server.wait_until(lambda: server.backend.num_live == 0 and server.service.admission.num_taken == 0)
        say(client, type="generate", id="g2", prompt="abc", sampling={"max_tokens": 2})
        assert hear(client)["id"] == "g2", "nothing more of the first one, its second run neither"


def test_a_generation_can_be_cancelled_before_it_has_a_row() -> None:
    engine = FakeEngine()
    with running(engine) as server, ready(server) as client:
        engine.blocked.clear()
        with ready(server) as other:
            say(other, type="generate", id="first", prompt="abc", sampling={"max_tokens": 2})
            server.wait_until(lambda: server.service.admission.num_taken == 1)
            say(client, type="generate", id="g1", prompt="abc")
            say(client, type="cancel", id="g1")
            end = hear(client)
            assert (end["type"], end["finish_reason"], end["steps"], end["text"]) == ("end", "cancelled", 0, "")
            engine.blocked.set()
            assert hear_run(other)[2]["text"] == "ab"


def test_a_socket_that_closes_cancels_its_generation() -> None:
    engine = FakeEngine(step_seconds=0.005)
    with running(engine) as server:
        with ready(server) as client:
            say(client, type="generate", id="g1", prompt="abc", sampling={"max_tokens": 250})
            hear(client, "step")
        server.wait_until(lambda: engine.num_live == 0 and server.service.admission.num_taken == 0)
        server.wait_until(lambda: not server.server.server_state.tasks)


def test_one_generation_at_a_time(server: Running) -> None:
    engine = server.backend
    with ready(server) as client:
        engine.blocked.clear()
        say(client, type="generate", id="g1", prompt="abc", sampling={"max_tokens": 2})
        say(client, type="generate", id="g2", prompt="abc")
        error = hear(client, "error")
        assert (error["id"], error["error"]["code"]) == ("g2", "busy")
        engine.blocked.set()
        assert hear(client, "end")["id"] == "g1"


def test_metrics_come_by_themselves(server: Running) -> None:
    with ready(server) as client:
        first, second = hear(client, "metrics"), hear(client, "metrics")
    assert set(first) == set(second) == {"type", "running", "waiting", "max_running", "tokens_per_s", "tau"}
    assert first["max_running"] == 4


def test_a_watcher_that_lags_loses_whole_steps_and_is_told_how_many() -> None:
    """The event loop is held up while the engine goes on, so the steps pile up in the collector."""
    engine = FakeEngine(INFO._replace(row_tokens=2048))
    with running(engine) as server, ready(server) as client:
        engine.step_seconds = 0.001
        say(client, type="generate", id="g1", prompt="abc", sampling={"max_tokens": 600})
        server.wait_until(lambda: engine.num_steps > 2)
        server.server._loop.call_soon_threadsafe(time.sleep, 0.9)
        _, steps, end = hear_run(client)
    assert end["text"] == "abc" * 200 and end["steps"] == 400
    assert end["dropped"] == sum(step["dropped"] for step in steps) > 0
    assert [step["i"] for step in steps] == sorted(step["i"] for step in steps)
    assert len(steps) >= MAX_STEPS


@pytest.mark.parametrize(
    ("sent", "request_id", "param"),
    [
        ("no json", None, None), ("[]", None, "type"), ('{"type": "other"}', None, "type"), ("\x00", None, None),
        ('{"type": "generate", "id": "g1"}', "g1", "prompt"),
        ('{"type": "generate", "prompt": "a"}', None, "id"),
        ('{"type": "generate", "id": "", "prompt": "a"}', None, "id"),
        (GENERATE + '"messages": [{"role": "user", "content": "a"}]}', "g1", "prompt"),
        (GENERATE + '"sampling": {"temperature": 3}}', "g1", "sampling.temperature"),
        (GENERATE + '"sampling": {"seed": 9007199254740992}}', "g1", "sampling.seed"),
        (GENERATE + '"sampling": {"stop": ["\\ud800"]}}', None, None),
        ('{"type": "cancel", "id": 5}', None, "id"),
    ],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_a_message_that_is_not_understood_keeps_the_socket(
    server: Running, sent: str, request_id: str | None, param: str | None
) -> None:
    with ready(server) as client:
        client.send(sent)
        error = hear(client, "error")
        assert (error["id"], error["error"]["code"], error["error"]["param"]) == (request_id, "bad_message", param)
        say(client, type="generate", id="g2", prompt="abc", sampling={"max_tokens": 1})
        assert hear(client, "end")["id"] == "g2"


@pytest.mark.parametrize("fields", [{"prompt": "a" * 300}, {"prompt": "a", "sampling": {"max_tokens": 256}}])
def test_what_does_not_fit_is_an_error_of_its_generation(server: Running, fields: dict[str, Any]) -> None:
    with ready(server) as client:
        say(client, type="generate", id="g1", **fields)
        error = hear(client, "error")
        assert (error["id"], error["error"]["code"]) == ("g1", "context_length_exceeded")


def test_a_client_without_hello_is_closed(server: Running) -> None:
    with socket_to(server) as client, pytest.raises(ConnectionClosed) as closed:
        client.recv(timeout=20)
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 1008


def test_generate_before_hello_is_refused_and_the_socket_stays(server: Running) -> None:
    with socket_to(server) as client:
        say(client, type="generate", id="g1", prompt="abc")
        error = hear(client)
        assert (error["id"], error["error"]["code"]) == ("g1", "bad_message")
        say(client, type="hello", v=1, key=None)
        assert hear(client)["type"] == "ready"


def test_the_key_comes_with_hello(tmp_path: Any) -> None:
    (tmp_path / "keys").write_text("right", encoding="utf-8")
    with running(config=ServerConfig(api_key_file=str(tmp_path / "keys"))) as server:
        for key in (None, "", "wrong"):
            with socket_to(server) as client:
                say(client, type="hello", v=1, key=key)
                error = hear(client)
                assert (error["id"], error["error"]["code"]) == (None, "unauthorized")
                with pytest.raises(ConnectionClosed) as closed:
                    client.recv(timeout=20)
                assert closed.value.rcvd is not None and closed.value.rcvd.code == 1008
        with socket_to(server) as client:
            say(client, type="hello", v=1, key="right")
            assert hear(client)["type"] == "ready"


@pytest.mark.parametrize("headers", [{"Origin": "http://evil.test"}, {"Origin": "null"}])
def test_pages_of_other_sites_are_refused_in_the_handshake(server: Running, headers: dict[str, str]) -> None:
    with pytest.raises(InvalidStatus) as refused, socket_to(server, additional_headers=headers):
        pass
    assert refused.value.response.status_code == 403


def test_the_servers_own_page_may_connect(server: Running) -> None:
    with socket_to(server, additional_headers={"Origin": f"http://127.0.0.1:{server.port}"}) as client:
        say(client, type="hello", v=1, key=None)
        assert hear(client)["type"] == "ready"


def test_a_message_beyond_a_mebibyte_closes_the_socket(server: Running) -> None:
    with ready(server) as client:
        client.send("a" * (2**20 + 1))
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                client.recv(timeout=20)
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 1009


def test_shutting_down_is_told_to_every_socket() -> None:
    engine = FakeEngine(step_seconds=0.02)
    with running(engine) as server, ready(server) as idle, ready(server) as busy:
        say(busy, type="generate", id="g1", prompt="abc", sampling={"max_tokens": 200})
        hear(busy, "step")
        server.server._drain_seconds = 0.1
        server.server._loop.call_soon_threadsafe(server.server.begin_drain)
        for client, request_id in ((busy, "g1"), (idle, None)):
            error = hear(client, "error")
            assert (error["id"], error["error"]["code"]) == (request_id, "shutting_down")
            with pytest.raises(ConnectionClosed) as closed:
                while True:
                    client.recv(timeout=20)
            assert closed.value.rcvd is not None and closed.value.rcvd.code == 1012


def test_an_overloaded_server_says_so() -> None:
    with running(FakeEngine(), max_waiting=0) as server, ExitStack() as stack:
        server.backend.blocked.clear()
        sockets = []
        for number in range(5):
            client = stack.enter_context(ready(server))
            sockets.append(client)
            say(client, type="generate", id=f"g{number}", prompt="abc", sampling={"max_tokens": 1})
            server.wait_until(lambda number=number: server.service.admission.num_taken == min(number + 1, 4))
        error = hear(sockets[-1], "error")
        assert (error["id"], error["error"]["code"]) == ("g4", "overloaded")
        server.backend.blocked.set()
        assert hear(sockets[0], "end")["text"] == "a"
