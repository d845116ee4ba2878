"""What the server does when steps fail, clients leave, everything comes at once, or it is told to stop."""

import asyncio
import gc
import http.client
import json
import logging
import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fake_engine import INFO, FakeEngine
from on_loopback import MODEL, Reply, Running, running

from euryale.server.limits import Timeouts
from euryale.server.run import LAST_SECONDS


def in_background(work: Any) -> tuple[threading.Thread, list[Reply]]:
    """Starts a request; the list gets its reply."""
    replies: list[Reply] = []
    thread = threading.Thread(target=lambda: replies.append(work()), daemon=True)
    thread.start()
    return thread, replies


def is_quiet(server: Running) -> bool:
    """No request holds anything."""
    return not (
        server.service.admission.num_taken
        or server.backend.num_live
        or server.service.meter.num_live
        or server.service.meter.num_waiting
    )


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_failed_step_costs_the_live_requests_alone(is_stream: bool) -> None:
    """A request has all four rows and two more wait when a step raises: it gets 500, they are answered."""
    engine = FakeEngine()
    with running(engine) as server:
        engine.blocked.clear()
        lost = in_background(lambda: server.complete(max_tokens=3, n=4, stream=is_stream))
        server.wait_until(lambda: server.service.meter.num_live == 4)
        waiting = [in_background(lambda: server.complete(max_tokens=3, stream=is_stream)) for _ in range(2)]
        server.wait_until(lambda: server.service.admission.num_taken == 6)
        engine.failing_steps = 1
        engine.blocked.set()
        for thread, _ in [lost, *waiting]:
            thread.join(20)
        assert lost[1][0].status == 500 and "CANARY" not in lost[1][0].error["message"]
        assert [replies[0].status for _, replies in waiting] == [200] * 2
        assert engine.num_resets == 1
        server.wait_until(lambda: is_quiet(server))
        assert 'engine_restarts_total{model_name="tiny"} 1.0' in server.ask("GET", "/metrics").body.decode()
        assert server.ask("GET", "/health").status == 200


def test_a_step_that_fails_in_mid_stream_is_the_streams_last_event() -> None:
    engine = FakeEngine(step_seconds=0.02)
    with running(engine) as server:
        thread, replies = in_background(lambda: server.complete(max_tokens=200, stream=True))
        server.wait_until(lambda: engine.num_steps > 3)
        engine.failing_steps = 1
        thread.join(20)
        events = replies[0].events()
        assert replies[0].status == 200 and events[0]["choices"]
        assert events[-1]["error"]["type"] == "server_error" and set(events[-1]) == {"error"}


def test_after_three_failures_in_a_minute_the_server_gives_up() -> None:
    engine = FakeEngine(failing_steps=10)
    with running(engine) as server:
        statuses = []
        for _ in range(3):
            statuses.append(server.complete().status)
        server.wait_until(lambda: server.server.has_died)
        server.thread.join(20)
        assert statuses == [500, 500, 500]
        assert server.service.thread.is_dead and engine.num_resets == 2
        assert not server.service.is_alive and not server.thread.is_alive()


def test_a_step_that_takes_too_long_is_a_stall() -> None:
    engine = FakeEngine()
    with running(engine, timeouts=Timeouts(step=0.1)) as server:
        assert server.ask("GET", "/health").status == 200
        engine.blocked.clear()
        thread, replies = in_background(lambda: server.complete(max_tokens=3))
        server.wait_until(lambda: server.ask("GET", "/health").status == 503)
        assert server.ask("GET", "/ready").status == 503
        engine.blocked.set()
        thread.join(20)
        assert replies[0].status == 200
        assert server.ask("GET", "/health").status == 200


def test_the_deadline_is_504_or_the_last_event() -> None:
    engine = FakeEngine(step_seconds=0.01)
    with running(engine, timeouts=Timeouts(deadline=0.3)) as server:
        reply = server.complete(max_tokens=250)
        assert (reply.status, reply.error["code"]) == (504, "timeout")
        events = server.complete(max_tokens=250, stream=True).events()
        assert events[0]["choices"] and events[-1]["error"]["code"] == "timeout"
        server.wait_until(lambda: is_quiet(server))
        assert 'cancelled_total{model_name="tiny",reason="timeout"} 2.0' in server.ask("GET", "/metrics").body.decode()


def test_ten_times_overload_is_answered_or_refused_with_a_time_to_retry() -> None:
    """Forty requests at once for four rows and two places to wait; nothing hangs and nothing stays."""
    engine = FakeEngine(step_seconds=0.005)
    with running(engine, max_waiting=2) as server, ThreadPoolExecutor(40) as pool:
        replies = list(pool.map(lambda i: server.complete(max_tokens=20, stream=i % 2 == 0), range(40)))
        counts = Counter(reply.status for reply in replies)
        assert set(counts) == {200, 503} and counts[200] >= 6
        for reply in replies:
            if reply.status == 503:
                assert reply.error["code"] == "overloaded" and 0 < int(reply.headers["retry-after"]) <= 120
        server.wait_until(lambda: is_quiet(server))
        assert server.complete(max_tokens=20).status == 200


def test_a_request_of_more_sequences_than_places_is_a_mistake_not_a_wait() -> None:
    with running(FakeEngine(), max_waiting=2) as server:
        assert server.complete(n=7).error["param"] == "n"
        assert server.complete(n=6, max_tokens=1).status == 200


def test_places_are_counted_before_a_prompt_is_tokenised() -> None:
    engine = FakeEngine()
    with running(engine, max_waiting=0) as server:
        tokenised = []
        encode = server.service.tokens.encode

        async def counted(*arguments: Any) -> list[int]:
            tokenised.append(1)
            return await encode(*arguments)

        server.service.tokens.encode = counted  # type: ignore[method-assign]
        engine.blocked.clear()
        thread, _ = in_background(lambda: server.complete(n=4))
        server.wait_until(lambda: server.service.meter.num_live == 4)
        assert server.complete().status == 503
        assert len(tokenised) == 1
        engine.blocked.set()
        thread.join(20)


def leave(server: Running, rng: random.Random) -> None:
    """Starts a request and closes its connection at a random moment."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    fields = {"model": MODEL, "prompt": "abc", "max_tokens": 200, "n": rng.choice([1, 2]), "stream": rng.random() < 0.6}
    connection.request("POST", "/v1/completions", json.dumps(fields), {"Content-Type": "application/json"})
    if fields["stream"] and rng.random() < 0.5:
        connection.getresponse().read(10)
    time.sleep(rng.random() * 0.01)
    connection.close()


def test_clients_that_leave_at_random_moments_leave_nothing_behind() -> None:
    """300 here; the count is what keeps it fast, and nothing depends on it."""
    engine = FakeEngine(step_seconds=0.001)
    rng = random.Random(1)
    with running(engine, max_waiting=100) as server:
        before = server.complete(max_tokens=30, temperature=0).json()["choices"]
        for _ in range(50):
            leave(server, rng)
        server.wait_until(lambda: is_quiet(server))
        gc.collect()
        num_objects = len(gc.get_objects())
        for _ in range(250):
            leave(server, rng)
        server.wait_until(lambda: is_quiet(server))
        server.wait_until(lambda: len(server.server.server_state.tasks) <= 1)
        gc.collect()
        assert len(gc.get_objects()) < num_objects * 1.05
        assert not server.service.thread._live and not server.service.thread._waiting
        assert not server.service.metrics._held and not server.service.metrics._last_token
        assert server.complete(max_tokens=30, temperature=0).json()["choices"] == before
        assert 'reason="disconnected"' in server.ask("GET", "/metrics").body.decode()


def test_a_client_that_leaves_while_it_waits_never_gets_a_row() -> None:
    engine = FakeEngine()
    with running(engine) as server:
        engine.blocked.clear()
        thread, _ = in_background(lambda: server.complete(n=4, max_tokens=2))
        server.wait_until(lambda: server.service.meter.num_live == 4)
        for is_stream in (False, True):
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
            fields = {"model": MODEL, "prompt": "xyz", "stream": is_stream}
            connection.request("POST", "/v1/completions", json.dumps(fields), {"Content-Type": "application/json"})
            server.wait_until(lambda: server.service.admission.num_taken == 5)
            connection.close()
            server.wait_until(lambda: server.service.admission.num_taken == 4)
        engine.blocked.set()
        thread.join(20)
        assert len(engine.started) == 4


def test_shutting_down_lets_live_requests_finish_and_refuses_new_ones() -> None:
    engine = FakeEngine(step_seconds=0.01)
    with running(engine) as server:
        thread, replies = in_background(lambda: server.complete(max_tokens=60, stream=True))
        server.wait_until(lambda: engine.num_steps > 2)
        server.server._loop.call_soon_threadsafe(server.server.begin_drain)
        server.wait_until(lambda: server.service.is_draining)
        refused = server.complete()
        assert (refused.status, refused.error["code"]) == (503, "shutting_down") and "retry-after" in refused.headers
        assert server.ask("GET", "/ready").status == 503 and server.ask("GET", "/health").status == 200
        thread.join(20)
        assert replies[0].events()[-1]["choices"][0]["finish_reason"] == "length"
        server.thread.join(10)
        assert not server.thread.is_alive()


def test_what_is_not_finished_when_the_time_for_draining_is_over_gets_an_error() -> None:
    engine = FakeEngine(step_seconds=0.02)
    with running(engine) as server:
        server.server._drain_seconds = 0.1
        streamed, whole = (
            in_background(lambda is_stream=is_stream: server.complete(max_tokens=250, stream=is_stream))
            for is_stream in (True, False)
        )
        server.wait_until(lambda: engine.num_live == 2 and engine.num_steps > 3)
        server.server._loop.call_soon_threadsafe(server.server.begin_drain)
        for thread, _ in (streamed, whole):
            thread.join(20)
        assert streamed[1][0].events()[-1]["error"]["code"] == "shutting_down"
        assert (whole[1][0].status, whole[1][0].error["code"]) == (503, "shutting_down")
        server.thread.join(10)
        assert not server.thread.is_alive()


def test_a_body_that_never_comes_does_not_hold_up_the_end(caplog: pytest.LogCaptureFixture) -> None:
    engine = FakeEngine(step_seconds=0.01)
    with running(engine) as server:
        client = server.connect()
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99\r\n\r\n{")
        assert server.complete().status == 200  # the other one has been read
        server.server._loop.call_soon_threadsafe(server.server.begin_drain)
        answer = b"".join(iter(lambda: client.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 503") and b"shutting_down" in answer
        client.close()
        server.thread.join(LAST_SECONDS - 1)
        assert not server.thread.is_alive()
    assert not [record for record in caplog.records if record.exc_info]


def test_a_reader_that_is_cut_off_at_the_end_leaves_no_traceback(caplog: pytest.LogCaptureFixture) -> None:
    with running(FakeEngine(step_seconds=0.001)):
        uvicorn = logging.getLogger("uvicorn.error")
        for error in (asyncio.CancelledError("timeout graceful shutdown exceeded"), ValueError("a bug")):
            uvicorn.error("Exception in ASGI application", exc_info=error)
        uvicorn.error("Traceback ...\n    await getter\nasyncio.exceptions.CancelledError\n")
    assert [type(record.exc_info[1]) for record in caplog.records if record.exc_info] == [ValueError]
    assert "getter" not in caplog.text


def test_the_warm_up_sees_the_longest_prompt_and_a_full_batch_before_ready() -> None:
    engine = FakeEngine()
    engine.blocked.clear()
    with running(engine, warm_up=True) as server:
        assert server.ask("GET", "/ready").status == 503
        engine.blocked.set()
        server.wait_until(lambda: server.ask("GET", "/ready").status == 200)
        assert len(engine.started[0].prompt) == INFO.row_tokens - 1
        assert len(engine.started) == 1 + INFO.num_rows
        assert server.ask("GET", "/metrics").body.decode().count('prompt_tokens_total{model_name="tiny"} 0.0') == 1


def test_nothing_of_a_users_text_is_in_the_log(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A canary in prompts, wrong fields and answers; crashes, refusals and disconnects included."""
    caplog.set_level(logging.DEBUG)
    # A handler that another test left with a closed stream would print its own error, traceback and all.
    monkeypatch.setattr(logging, "raiseExceptions", False)
    canary = "xyzzyx"
    engine = FakeEngine(step_seconds=0.001)
    headers = {"Content-Type": "application/json"}
    with running(engine) as server:
        assert canary in server.complete(prompt=canary).json()["choices"][0]["text"]
        assert canary in server.chat(messages=[{"role": "user", "content": canary}], stream=False).body.decode()
        server.complete(prompt=canary, stream=True)
        server.complete(prompt=[canary, 5])
        server.complete(temperature=canary)
        server.complete(model=canary)
        server.ask("GET", f"/{canary}?q={canary}", headers={"X-Request-Id": canary})
        server.ask("POST", "/v1/completions", f'{{"prompt": "{canary}'.encode(), headers)
        server.ask("POST", "/tokenize", {"prompt": canary})
        engine.failing_steps = 1
        server.complete(prompt=canary)
        server.service.tokens.check_ids = lambda *_: 1 / 0  # type: ignore[method-assign]
        failed = server.complete(prompt=[0, 1])
        assert (failed.status, failed.error["code"]) == (500, "server_error")
        assert "division" not in failed.error["message"]
        server.service.tokens.text_of = lambda _: 1 / 0  # type: ignore[method-assign]
        failed = server.ask("POST", "/tokenize", {"prompt": canary, "return_token_strs": True})
        assert (failed.status, failed.error["code"]) == (500, "server_error")
    logged = "\n".join(record.getMessage() + str(record.exc_info) for record in caplog.records)
    printed = "".join(capfd.readouterr())
    assert "cmpl-" in logged and "ZeroDivisionError" in logged and "check_ids" in logged
    for text in (logged, printed):
        assert canary not in text and "CANARY" not in text


def test_the_page_is_served_with_a_policy_and_nothing_else_of_the_disk(tmp_path: Path) -> None:
    (tmp_path / "page" / "assets").mkdir(parents=True)
    (tmp_path / "page" / "index.html").write_text("<title>tree</title>", encoding="utf-8")
    (tmp_path / "page" / "assets" / "app-1a2b.js").write_text("1", encoding="utf-8")
    (tmp_path / "secret.txt").write_text("secret", encoding="utf-8")
    with running(page=tmp_path / "page") as server:
        page = server.ask("GET", "/")
        assert page.status == 200 and page.headers["content-type"].startswith("text/html")
        assert "default-src 'self'" in page.headers["content-security-policy"]
        assert (page.headers["cache-control"], page.headers["x-content-type-options"]) == ("no-cache", "nosniff")
        asset = server.ask("GET", "/assets/app-1a2b.js")
        assert asset.status == 200 and "immutable" in asset.headers["cache-control"]
        assert "javascript" in asset.headers["content-type"]
        for path in ("/../secret.txt", "/assets/../../secret.txt", "/%2e%2e/secret.txt", "/assets/", "/index.html"):
            assert server.ask("GET", path).status == 404
        assert server.ask("GET", "/v1/completions").status == 405
    with running(page=tmp_path / "none") as server:
        assert server.ask("GET", "/").status == 404
