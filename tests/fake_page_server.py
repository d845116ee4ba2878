"""A server for the page's tests: the built files over HTTP, and steps made from a written text over the WebSocket.

It speaks version 1 of web/PROTOCOL.md and needs no model. The prompt chooses what happens: HOSTILE sends tokens that
try to be more than text, LAGGING loses steps, as for a watcher that cannot keep up, "too long" is refused, and
anything else sends STORY. What was sent is kept in `steps` for the tests to compare with.
"""

import asyncio
import json
import random
import re
import threading
from collections.abc import Iterator
from pathlib import Path

from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

PAGE = Path(__file__).resolve().parents[1] / "src" / "euryale" / "server" / "page"
MIME = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
POLICY = "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"

TEXT = (
    " The sky looks blue because air scatters blue light from the sun far more than red light. At sunset the light"
    " crosses much more air, so most of the blue is gone before it reaches us, and the sky turns orange and red.\n\n"
    " This is called Rayleigh scattering, and it is why the sea of air above us has a colour at all."
)
STORY = re.findall(r"\n\n| ?\w+|[.,]", TEXT)
HOSTILE = [
    "<img src=x onerror=alert(1)>", "\u202eevil", "a\x00b", "</script><script>alert(2)</script>", "\ufffd", "\x1b[31m",
    "javascript:alert(3)", "\u200b", "__proto__", "{{7*7}}", "\u0301", "\U0001f600", " " * 40, "W" * 200, "\r\n",
    "\ufeff", "\U000e0041", "&lt;b&gt;", "\u2028", "\u05d0\u05d1",
]  # fmt: skip
DECOYS = re.findall(r"\n| ?\w+|[.,]", " the a is of and to in light sky,. more red that it was air water very\n")
PARENTS = [-1, 0, 0, 0, 1, 1, 2, 4, 4, 5, 7, 7, 10]  # of every step's tree; a parent's first child has rank 0


class FakeServer:
    """`with FakeServer() as server`: listens at server.url until the block ends. key: asked for in `hello`."""

    def __init__(self, key: str | None = None, step_ms: float = 6.0) -> None:
        self.key = key
        self.step_ms = step_ms
        self.steps: list[dict] = []  # every step sent
        self.received: list[dict] = []  # every message of every client
        self._sockets: set[ServerConnection] = set()
        self._loop = asyncio.new_event_loop()
        self._is_up = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),), daemon=True)

    def __enter__(self) -> "FakeServer":
        self._thread.start()
        assert self._is_up.wait(10), "the fake server did not start"
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(10)

    def break_connections(self) -> None:
        """As when a network fails: no closing handshake."""
        for socket in list(self._sockets):
            self._loop.call_soon_threadsafe(socket.transport.abort)

    async def _serve(self) -> None:
        self._stopped = asyncio.Event()
        async with serve(self._talk, "127.0.0.1", 0, process_request=_page) as server:
            port = server.sockets[0].getsockname()[1]
            self.url = f"http://127.0.0.1:{port}/"
            self._is_up.set()
            await self._stopped.wait()

    async def _talk(self, socket: ServerConnection) -> None:
        self._sockets.add(socket)
        tasks: list[asyncio.Task[None]] = []
        try:
            async for frame in socket:
                message = json.loads(frame)
                self.received.append(message)
                if message["type"] == "hello":
                    if message["key"] != self.key:
                        await _send(socket, _error(None, "unauthorized", "The API key is missing or wrong."))
                        await socket.close(1008)
                        return
                    await _send(socket, READY)
                    tasks.append(asyncio.create_task(_tell_metrics(socket)))
                elif message["type"] == "generate":
                    cancelled = asyncio.Event()
                    tasks.append(asyncio.create_task(self._generate(socket, message, cancelled)))
                elif message["type"] == "cancel":
                    cancelled.set()
        finally:
            self._sockets.discard(socket)
            for task in tasks:
                task.cancel()

    async def _generate(self, socket: ServerConnection, asked: dict, cancelled: asyncio.Event) -> None:
        prompt = _prompt(asked)
        if "too long" in prompt:
            await _send(socket, _error(asked["id"], "context_length_exceeded", "prompt must be at most 2048 tokens."))
            return
        tokens = HOSTILE if "HOSTILE" in prompt else STORY
        for run in ("ar", "heads") if asked["compare"] else ("heads",):
            if not await self._decode(socket, asked, run, tokens, cancelled):
                return

    async def _decode(
        self, socket: ServerConnection, asked: dict, run: str, tokens: list[str], cancelled: asyncio.Event
    ) -> bool:
        """Sends one run; False when it was cancelled."""
        head = {"id": asked["id"], "run": run}
        drafter = "none" if run == "ar" else "heads"
        about = {"model": READY["model"], "drafter": drafter, "seed": 0, "prompt_tokens": 12, "queue_ms": 0.4}
        await _send(socket, {"type": "start", **head, **about})
        t_ms, text = 0.0, ""
        sent: list[dict] = []
        lost: list[dict] = []
        is_lagging = "LAGGING" in _prompt(asked)
        for step in made_steps(tokens[: asked["sampling"]["max_tokens"]], has_guesses=run == "heads"):
            await asyncio.sleep(self.step_ms / 1000)
            if cancelled.is_set():
                break
            t_ms += self.step_ms * (1.2 if run == "heads" else 1.0)
            text += step["text"]
            if is_lagging and step["i"] % 3:
                lost.append(step)
                continue
            missed = {"dropped": len(lost), "missed": "".join(it["text"] for it in lost)}
            message = {"type": "step", **head, "t_ms": t_ms, **step, **missed}
            await _send(socket, message)
            sent.append(message)
            self.steps.append(message)
            lost = []
        reason = "cancelled" if cancelled.is_set() else "stop"
        ids = [_id(token) for token in tokens] if reason == "stop" else []
        num_dropped = sum(it["dropped"] for it in sent) + len(lost)
        totals = {"t_ms": t_ms, "steps": len(sent) + num_dropped, "dropped": num_dropped}
        totals["missed"] = "".join(it["text"] for it in lost)
        await _send(socket, {"type": "end", **head, "finish_reason": reason, "text": text, "ids": ids, **totals})
        return reason == "stop"


READY = {
    "type": "ready", "v": 1, "model": "story-model", "drafter": "heads", "max_model_len": 2048, "chat": True,
    "version": "0.0.0",
}  # fmt: skip


def made_steps(tokens: list[str], has_guesses: bool) -> Iterator[dict]:
    """Steps that write `tokens`: how many guesses are right, and where in the tree, is drawn with a fixed seed."""
    draw, at, root, i = random.Random(5), 0, "user:", 0
    while at < len(tokens):
        nodes = [_node(root, -1, 0, 0, 1.0, "root")]
        last = 0  # of the accepted path
        right = draw.choice([0, 1, 1, 2, 2, 3, 4]) if has_guesses else 0
        for node, parent in enumerate(PARENTS[1:] if has_guesses else [], start=1):
            depth, rank = nodes[parent]["depth"] + 1, PARENTS[1:node].count(parent)
            text = tokens[at + depth - 1] if at + depth - 1 < len(tokens) - 1 else ""
            if text and parent == last and depth <= right and (rank > 0 or draw.random() < 0.8 or parent > 0):
                nodes.append(_node(text, parent, depth, rank, draw.uniform(0.35, 0.98), "accepted"))
                last = node
            else:
                decoy = draw.choice([it for it in DECOYS if it != text])
                nodes.append(_node(decoy, parent, depth, rank, draw.uniform(0.0, 0.3) ** 2, "rejected"))
        gained = tokens[at : at + nodes[last]["depth"] + 1]
        bonus = {"token": _id(gained[-1]), "text": gained[-1], "parent": last, "p": draw.uniform(0.3, 0.95)}
        parts = {"draft": 2.4, "verify": 11.3, "accept": 0.7, "commit": 0.4} | ({"prefill": 31.0} if i == 0 else {})
        yield {
            "i": i, "parts_ms": parts, "nodes": nodes, "bonus": bonus, "text": "".join(gained), "dropped": 0,
            "missed": "",
        }  # fmt: skip
        at, root, i = at + len(gained), gained[-1], i + 1


def _node(text: str, parent: int, depth: int, rank: int, p: float, state: str) -> dict:
    return {
        "token": _id(text), "text": text, "parent": parent, "depth": depth, "rank": rank, "p": p, "state": state,
    }  # fmt: skip


def _id(text: str) -> int:
    return sum(map(ord, text)) % 50_000


def _prompt(asked: dict) -> str:
    return asked["prompt"] if "prompt" in asked else asked["messages"][-1]["content"]


def _error(request: str | None, code: str, message: str) -> dict:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    return {"type": "error", "id": request, "error": error}


async def _tell_metrics(socket: ServerConnection) -> None:
    figures = {"running": 1, "waiting": 2, "max_running": 8, "tokens_per_s": 88.4, "tau": 2.5}
    while True:
        await _send(socket, {"type": "metrics", **figures})
        await asyncio.sleep(0.5)


async def _send(socket: ServerConnection, message: dict) -> None:
    try:
        await socket.send(json.dumps(message))
    except ConnectionClosed:
        raise asyncio.CancelledError from None  # the client left: what was to be told is moot


def _page(socket: ServerConnection, request: Request) -> Response | None:
    if request.path == "/ws":
        return None
    file = PAGE / (request.path.split("?")[0].strip("/") or "index.html")
    if file.parent != PAGE or not file.is_file():
        return Response(404, "Not Found", Headers([("Content-Length", "0")]), b"")
    body = file.read_bytes()
    headers = [
        ("Content-Type", MIME.get(file.suffix, "text/plain") + "; charset=utf-8"),
        ("Content-Length", str(len(body))),
        ("Content-Security-Policy", POLICY),
        ("Cache-Control", "no-cache"),
        ("X-Content-Type-Options", "nosniff"),
    ]
    return Response(200, "OK", Headers(headers), body)
