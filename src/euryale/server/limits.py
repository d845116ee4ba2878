"""Bounds on what one request may ask for and how long each part of it may take."""

from dataclasses import dataclass

BODY_BYTES = 1 << 20
HEAD_BYTES = 64 << 10
MAX_SEQUENCES = 16  # prompts times n
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256
MAX_STOP_IDS = 256
MAX_BIASES = 300
MAX_CHOICES = 1000  # answers of which one is to be given
MAX_FORM_CHARACTERS = 120_000  # of a schema or an expression: about half a second of a processor
MAX_MESSAGES = 2048
MAX_SEED = 2**63 - 1
RANDOM_SEEDS = 2**53  # seeds drawn here are exact in JavaScript
RETRY_AFTER_SECONDS = 5  # openai's clients do not wait longer than 120


@dataclass(frozen=True)
class Timeouts:
    """Seconds. Tests shorten them; users set `deadline` and `drain`."""

    deadline: float = 600.0  # from the request to its last token
    drain: float = 30.0  # for live requests after SIGTERM
    head: float = 10.0  # for a request's head to arrive
    body: float = 10.0  # for its body
    stall: float = 30.0  # for a client to read what was sent
    hello: float = 5.0  # for a WebSocket client to say who it is
    step: float = 300.0  # for one step of the engine; longer is a stall
    # Between two requests on one connection. Longer than clients wait themselves (httpx 5 s, aiohttp 15 s), or one may
    # reuse a connection in the moment in which it is closed here.
    keep_alive: int = 20
    metrics: float = 0.5  # between two `metrics` messages of a WebSocket
    events: float = 0.02  # between two events of a stream; the first token and the end do not wait
