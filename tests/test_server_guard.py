"""Clients that send too much, too slowly or nothing, and readers that never read. Times are shortened to fractions."""

import json
import socket
import time
from collections.abc import Iterator

import pytest
from fake_engine import FakeEngine
from on_loopback import MODEL, Running, running

from euryale.server.limits import Timeouts

SHORT = Timeouts(head=0.4, body=0.4, stall=0.5, keep_alive=5, deadline=30)
HOST = b"Host: 127.0.0.1\r\n"
JSON = b"Content-Type: application/json\r\n"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(FakeEngine(), timeouts=SHORT) as started:
        yield started


def read_all(client: socket.socket) -> bytes:
    """Until the server closes; an abort reads as an end."""
    data = b""
    try:
        while piece := client.recv(65536):
            data += piece
    except ConnectionError:
        pass
    return data


def status_and_code(answer: bytes) -> tuple[int, str]:
    """The status of a raw answer, and the type in its envelope."""
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]["type"]


@pytest.mark.parametrize("piece", [1 << 20, 4096], ids=["one write", "pieces"])
@pytest.mark.parametrize("size", [60 << 10, 70 << 10, 240 << 10])
def test_a_head_beyond_its_bound_is_431(server: Running, size: int, piece: int) -> None:
    head = b"GET /health HTTP/1.1\r\nConnection: close\r\n" + HOST + b"X-A: " + b"a" * size + b"\r\n\r\n"
    with server.connect() as client:
        try:
            for start in range(0, len(head), piece):
                client.sendall(head[start : start + piece])
        except ConnectionError:  # refused before it was sent whole
            pass
        answer = read_all(client)
    if size < 64 << 10:
        assert answer.startswith(b"HTTP/1.1 200")
    elif answer:  # the answer is lost where the client still wrote when the connection closed
        assert status_and_code(answer) == (431, "invalid_request_error")


def test_a_silent_connection_is_closed(server: Running) -> None:
    with server.connect() as client:
        start = time.monotonic()
        assert read_all(client) == b""
    assert time.monotonic() - start < 10


def test_a_slow_head_is_408(server: Running) -> None:
    with server.connect() as client:
        client.sendall(b"GET /health HTTP/1.1\r\n" + HOST + b"X-Slow: ")
        assert status_and_code(read_all(client)) == (408, "invalid_request_error")


def test_dripping_bytes_do_not_extend_the_time_of_a_head(server: Running) -> None:
    with server.connect() as client:
        client.settimeout(0.05)
        answer, start = b"", time.monotonic()
        client.sendall(b"GET /health HTTP/1.1\r\n" + HOST + b"X-Slow: ")
        while not answer and time.monotonic() - start < 10:
            try:
                client.sendall(b"a")
                answer = client.recv(1000)
            except TimeoutError:
                continue
            except ConnectionError:
                return
    assert status_and_code(answer) == (408, "invalid_request_error")


def test_a_slow_body_is_408(server: Running) -> None:
    with server.connect() as client:
        client.sendall(b"POST /v1/completions HTTP/1.1\r\n" + HOST + JSON + b"Content-Length: 100\r\n\r\n{")
        assert status_and_code(read_all(client)) == (408, "invalid_request_error")


def test_an_announced_body_that_is_too_large_is_413_before_it_is_sent(server: Running) -> None:
    for length in (b"50000000", b"9" * 4000):
        with server.connect() as client:
            client.sendall(
                b"POST /v1/completions HTTP/1.1\r\n" + HOST + JSON + b"Content-Length: " + length + b"\r\n\r\n"
            )
            answer = read_all(client)
        assert status_and_code(answer) in ((413, "invalid_request_error"), (400, "invalid_request_error"))


@pytest.mark.parametrize("num_chunks", [20, 200], ids=["a little", "far"])
def test_a_chunked_body_that_is_too_large_is_413(server: Running, num_chunks: int) -> None:
    with server.connect() as client:
        client.sendall(b"POST /v1/completions HTTP/1.1\r\n" + HOST + JSON + b"Transfer-Encoding: chunked\r\n\r\n")
        try:
            for _ in range(num_chunks):
                client.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")
            client.sendall(b"0\r\n\r\n")
        except ConnectionError:  # far beyond the bound it is refused before it was sent whole
            pass
        answer = read_all(client)
    assert (not answer and num_chunks == 200) or status_and_code(answer) == (413, "invalid_request_error")


@pytest.mark.parametrize(
    "request_bytes",
    [b"nonsense\r\n\r\n", b"GET /health HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
     b"POST /v1/completions HTTP/1.1\r\n" + HOST + b"Content-Length: -1\r\n\r\n",
     b"POST /v1/completions HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"],
    ids=["nonsense", "no host", "TLS", "negative length", "bad chunk"],
)  # fmt: skip
def test_what_is_not_http_is_400_with_an_envelope(server: Running, request_bytes: bytes) -> None:
    with server.connect() as client:
        client.sendall(request_bytes)
        assert status_and_code(read_all(client)) == (400, "invalid_request_error")


def test_silent_connections_leave_room_for_others(server: Running) -> None:
    silent = [server.connect() for _ in range(60)]
    assert server.ask("GET", "/health").status == 200
    server.wait_until(lambda: len(server.server.server_state.connections) == 0)
    for client in silent:
        client.close()


def test_two_requests_on_one_connection_are_both_answered(server: Running) -> None:
    request = b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n"
    with server.connect() as client:
        client.sendall(request)
        assert client.recv(1000).startswith(b"HTTP/1.1 200")
        time.sleep(2 * SHORT.head)  # a kept connection may be silent for longer than a head may take
        client.sendall(request)
        assert client.recv(1000).startswith(b"HTTP/1.1 200")


def test_a_reader_that_never_reads_is_cut_and_its_rows_are_freed(server: Running) -> None:
    """Choices with long token lists fill the buffers of both sides; then nothing is read."""
    fields = {
        "model": MODEL,
        "prompt": ["abc"] * 4,
        "n": 4,
        "max_tokens": 250,
        "stream": True,
        "logprobs": 20,
        "echo": True,
    }
    body = json.dumps(fields | {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\n" + HOST + JSON + b"Content-Length: %d\r\n\r\n" % len(body)
    with server.connect(receive_buffer=4096) as client:
        client.sendall(head + body)
        server.wait_until(lambda: server.service.admission.num_taken == 16)
        server.wait_until(lambda: server.service.admission.num_taken == 0)
        server.wait_until(lambda: server.backend.num_live == 0)
    answer = server.complete(max_tokens=3)
    assert answer.status == 200


def test_a_reader_that_pauses_for_a_moment_gets_everything(server: Running) -> None:
    body = json.dumps({"model": MODEL, "prompt": "abc", "max_tokens": 40, "stream": True}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nConnection: close\r\n" + HOST + JSON
    with server.connect() as client:
        client.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        time.sleep(0.2)
        assert read_all(client).rstrip().endswith(b"data: [DONE]\n\n\r\n0")
