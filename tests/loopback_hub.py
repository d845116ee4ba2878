"""A stand-in for the Hugging Face hub on 127.0.0.1 that can misbehave: what the hub tests stream from.

It serves the folders `root/ORG/NAME/...`, as repositories of data sets and of models alike, through the few routes that
the real client uses: the repository's description, its file tree, and the files themselves with byte ranges. A `Fault`
makes it drop the connection in the middle of a file, stall there, answer 503, or refuse a gated repository. Not a test
file itself.
"""

from __future__ import annotations

import hashlib
import json
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = hashlib.sha1(b"loopback").hexdigest()


@dataclass
class Fault:
    """What goes wrong with the next `times` GETs whose path contains `path`: `drop` and `stall` after `after_bytes`
    of the body, `unavailable` (503) and `gated` (403) at once."""

    kind: str
    path: str = "/resolve/"
    after_bytes: int = 0
    times: int = 1


@dataclass
class LoopbackHub:
    """`with LoopbackHub(root) as hub:` serves until the block ends; `hub.url` goes into HF_ENDPOINT."""

    root: Path
    faults: list[Fault] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    stall_s: float = 4.0
    connections: set[socket.socket] = field(default_factory=set)

    def __enter__(self) -> LoopbackHub:
        hub = self

        class Handler(_Handler):
            state = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self._released = threading.Event()
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.go_away()

    def go_away(self) -> None:
        """From now on it cannot be reached, not even over a connection that a client has kept."""
        self._released.set()
        self._server.shutdown()
        self._server.server_close()
        for connection in list(self.connections):
            with suppress(OSError):  # its client has gone already
                connection.shutdown(socket.SHUT_RDWR)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def take_fault(self, path: str) -> Fault | None:
        for fault in self.faults:
            if fault.times > 0 and fault.path in path:
                fault.times -= 1
                return fault
        return None

    def stall(self) -> None:
        self._released.wait(self.stall_s)


class _Handler(BaseHTTPRequestHandler):
    state: LoopbackHub
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.state.connections.add(self.connection)

    def finish(self) -> None:
        self.state.connections.discard(self.connection)
        super().finish()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        self.state.requests.append(f"{self.command} {self.path} {self.headers.get('Range', '')}".strip())
        fault = self.state.take_fault(url.path) if self.command == "GET" else None
        if fault is not None and fault.kind == "unavailable":
            self._json({"error": "service unavailable"}, 503)
        elif fault is not None and fault.kind == "gated":
            self._json({"error": "gated"}, 403, {"X-Error-Code": "GatedRepo"})
        elif parts[0] == "api" and parts[1] in ("datasets", "models"):
            self._api("/".join(parts[2:4]), parts[4:], parse_qs(url.query))
        elif parts[0] == "datasets" and parts[3:4] == ["resolve"]:
            self._file("/".join(parts[1:3]), "/".join(parts[5:]), fault)
        elif parts[2:3] == ["resolve"]:
            self._file("/".join(parts[:2]), "/".join(parts[4:]), fault)
        else:
            self._json({"error": "not found"}, 404, {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        repository = self.state.root / "/".join(parts[2:4])
        wanted = json.loads(body)["paths"] if body.startswith(b"{") else parse_qs(body.decode()).get("paths", [])
        self._json([_entry(repository, path) for path in wanted if (repository / path).exists()])

    def _api(self, name: str, rest: list[str], query: dict[str, list[str]]) -> None:
        repository = self.state.root / name
        if not repository.is_dir():
            return self._json({"error": "no such repository"}, 404, {"X-Error-Code": "RepoNotFound"})
        files = sorted(str(path.relative_to(repository)) for path in repository.rglob("*") if path.is_file())
        if not rest or rest[0] == "revision":
            siblings = [{"rfilename": path} for path in files]
            commit = rest[1] if rest and len(rest[1]) == len(COMMIT) else COMMIT  # any branch means COMMIT
            about = {"_id": "1", "id": name, "sha": commit, "private": False, "tags": [], "siblings": siblings}
            return self._json(about)
        if rest[0] == "tree":
            folder = repository / "/".join(rest[2:])
            recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
            found = sorted(folder.rglob("*") if recursive else folder.glob("*"))
            if found:
                return self._json([_entry(repository, str(path.relative_to(repository))) for path in found])
        return self._json({"error": "no such entry"}, 404, {"X-Error-Code": "EntryNotFound"})

    def _file(self, name: str, path: str, fault: Fault | None) -> None:
        file = self.state.root / name / path
        if not file.is_file():
            return self._json({"error": "no such file"}, 404, {"X-Error-Code": "EntryNotFound"})
        data, first, status = file.read_bytes(), 0, 200
        wanted = self.headers.get("Range")
        size = len(data)
        if wanted:
            start, _, end = wanted.removeprefix("bytes=").partition("-")
            first = int(start) if start else size - int(end)
            last = min(int(end), size - 1) if start and end else size - 1
            data, status = data[first : last + 1], 206
        self.send_response(status)
        self.send_header("ETag", f'"{hashlib.sha1(str(file).encode()).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{first + len(data) - 1}/{size}")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault is None:
            self.wfile.write(data)
            return
        self.wfile.write(data[: fault.after_bytes])
        self.wfile.flush()
        if fault.kind == "stall":
            self.state.stall()
        self.close_connection = True

    def _json(self, value: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for key, text in (headers or {}).items():
            self.send_header(key, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _entry(repository: Path, path: str) -> dict[str, object]:
    full = repository / path
    oid = hashlib.sha1(path.encode()).hexdigest()
    if full.is_dir():
        return {"type": "directory", "path": path, "oid": oid, "size": 0}
    return {"type": "file", "path": path, "oid": oid, "size": full.stat().st_size}
