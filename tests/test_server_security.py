"""Who may ask: API key, Host and Origin."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from on_loopback import MODEL, Running, running

from euryale.errors import UserError
from euryale.server.address import find_port
from euryale.server.config import KEY_VARIABLE, ServerConfig

COMPLETIONS = "/v1/completions"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    keys = tmp_path_factory.mktemp("keys") / "keys.txt"
    keys.write_text("first-key\nsecond-key\n", encoding="utf-8")
    config = ServerConfig(api_key_file=str(keys), allowed_hosts=["llm.test"], allowed_origins=["https://ui.test"])
    with running(config=config) as started:
        yield started


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/openapi.json", "/v1/nothing"])
@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Bearer wrong", "Basic first-key", "Bearer \xff"])
def test_a_missing_or_wrong_key_is_401(guarded: Running, path: str, header: str | None) -> None:
    reply = guarded.ask("GET", path, headers={} if header is None else {"Authorization": header})
    assert (reply.status, reply.error["code"]) == (401, "invalid_api_key")
    assert reply.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("key", ["first-key", "second-key"])
def test_each_key_of_the_file_opens(guarded: Running, key: str) -> None:
    assert guarded.ask("GET", "/v1/models", headers={"Authorization": f"Bearer {key}"}).status == 200


def test_health_and_ready_are_open(guarded: Running) -> None:
    guarded.wait_until(lambda: guarded.ask("GET", "/ready").status == 200)
    assert guarded.ask("GET", "/health").status == 200


def test_a_key_in_the_url_opens_nothing(guarded: Running) -> None:
    assert guarded.ask("GET", "/v1/models?api_key=first-key").status == 401


@pytest.mark.parametrize(
    ("host", "status"),
    [("127.0.0.1", 200), ("localhost:1234", 200), ("[::1]:80", 200), ("LLM.test", 200), ("evil.test", 403),
     ("127.0.0.1.evil.test", 403), ("", 403)],
)  # fmt: skip
def test_only_known_hosts_are_answered(guarded: Running, host: str, status: int) -> None:
    reply = guarded.ask("GET", "/health", headers={"Host": host})
    assert reply.status == status
    assert status == 200 or "Host" in reply.error["message"]


@pytest.mark.parametrize(
    ("origin", "status"),
    [("https://ui.test", 200), ("http://llm.test", 200), ("https://evil.test", 403), ("null", 403), ("[", 403)],
)
def test_pages_of_other_sites_cannot_post(guarded: Running, origin: str, status: int) -> None:
    headers = {"Authorization": "Bearer first-key", "Host": "llm.test", "Origin": origin}
    body = {"model": MODEL, "prompt": "abc", "max_tokens": 1}
    reply = guarded.ask("POST", COMPLETIONS, body, headers | {"Content-Type": "application/json"})
    assert reply.status == status
    assert "access-control-allow-origin" not in reply.headers


def test_the_key_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "from-outside")
    with running() as server:
        assert server.ask("GET", "/v1/models").status == 401
        assert server.ask("GET", "/v1/models", headers={"Authorization": "bearer from-outside"}).status == 200


def test_other_machines_need_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for host in ("0.0.0.0", "::", "192.168.1.5", "llm.test"):
        with pytest.raises(UserError, match=KEY_VARIABLE):
            ServerConfig(host=host).check_server()
    monkeypatch.setenv(KEY_VARIABLE, "a-key")
    ServerConfig(host="0.0.0.0").check_server()
    for host in ("127.0.0.1", "::1", "localhost"):
        ServerConfig(host=host).check_server()


@pytest.mark.parametrize("content", ["", "\n \n", "two words", "umlaut-\u00fc"])
def test_a_key_file_that_opens_nothing_is_refused(content: str, tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match="key"):
        ServerConfig(api_key_file=str(file)).api_keys()


def test_a_key_file_that_is_not_there_is_refused_before_a_base_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        ServerConfig(api_key_file=str(tmp_path / "none.txt")).check_server()


@pytest.mark.parametrize("host", ["1.2.3.4", "..", "a" * 80, "256.1.1.1"])
def test_a_host_that_is_not_of_this_machine_is_refused(host: str) -> None:
    with pytest.raises(UserError, match=f"host={host} port=0 cannot be listened at"):
        find_port(ServerConfig(host=host, port=0))


def test_a_port_that_is_taken_is_refused_and_another_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = listener.getsockname()[1]
        with pytest.raises(UserError, match=f"port={taken} cannot be listened at"):
            find_port(ServerConfig(port=taken))
    assert find_port(ServerConfig(port=taken)) == taken
    assert find_port(ServerConfig(port=0)) > 0


@pytest.mark.parametrize(
    ("field", "value"),
    [("port", 70000), ("max_rows", 0), ("max_model_len", 1), ("max_waiting", -1), ("deadline", 0), ("drain", -1)],
)
def test_numbers_out_of_range_are_refused(field: str, value: int) -> None:
    with pytest.raises(UserError, match=f"{field} must be from"):
        ServerConfig(**{field: value}).check_server()
