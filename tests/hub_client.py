"""A process of its own that reads from the hub named by HF_ENDPOINT, for test_hub.py.

huggingface_hub and datasets read that variable once, when they are imported, and cache what they learn of an endpoint:
only a fresh process can be pointed at the loopback hub. It takes one JSON request a line and answers with one. Waits
are shortened to nothing and reported.
"""

import json
import logging
import sys
import time
from typing import Any

waits: list[float] = []
messages: list[str] = []


def sleep_briefly(seconds: Any) -> None:
    waits.append(seconds)


time.sleep = sleep_briefly

from euryale.data.config import DataConfig  # noqa: E402
from euryale.data.sources import Message, build_source  # noqa: E402
from euryale.errors import UserError  # noqa: E402


class Recorder(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        messages.append(record.getMessage())


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Reads `count` rows (null: the rest of the pass) after the cursor `state` of the source `config` describes."""
    waits.clear()
    messages.clear()
    start = time.perf_counter()
    rows: list[str | list[Message] | None] = []
    state = error = None
    try:
        source = build_source(DataConfig(**request["config"]), request.get("split", "train"))
        if request.get("state") is not None:
            source.load_state_dict(request["state"])
        if request.get("count") != 0:
            for row in source:
                rows.append(row.text if row.messages is None else list(row.messages))
                if len(rows) == request.get("count"):
                    break
        state = source.state_dict()
    except UserError as problem:
        error = str(problem)
    seconds = time.perf_counter() - start
    return {"rows": rows, "state": state, "error": error, "waits": waits, "messages": messages, "seconds": seconds}


if __name__ == "__main__":
    logging.getLogger("euryale").addHandler(Recorder())
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)
