"""Numbers of a run: metrics.jsonl always, wandb on request.

One line per step that has something to say, few numbers, the unit in the key. The file is the record; the rest is
for watching.
"""

import json
import logging
import os
import socket
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from euryale.errors import UserError
from euryale.system.files import write_atomically
from euryale.training.config import wandb_mode

CONNECT_TIMEOUT_S = 3.0
log = logging.getLogger(__name__)


class MetricsLog:
    """Appends records to metrics.jsonl and hands them to wandb when it is on."""

    def __init__(self, path: Path, wandb: str, settings: Mapping[str, object], wandb_id: str | None) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._run = _start_wandb(wandb, path.parent, settings, wandb_id)
        self.wandb_id: str | None = self._run.id if self._run is not None else wandb_id

    def write(self, record: dict[str, object]) -> None:
        """Adds one line; it is with the operating system when this returns, so a kill does not lose it."""
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise UserError(f"{self._path} cannot be written: {error}. Make room, then go on with resume=.") from error
        if self._run is not None:
            self._run.log(_flat(record), step=record["step"])

    def close(self) -> None:
        """Lets wandb finish."""
        if self._run is not None:
            self._run.finish()


def truncate_metrics(path: Path, last_step: int) -> None:
    """Drops lines of steps after `last_step`, which will be written again, and what a kill or the loss of power left
    that is no line."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            is_kept = json.loads(line)["step"] <= last_step
        except (ValueError, KeyError, TypeError):
            is_kept = False
        if is_kept:
            kept.append(line + "\n")
    with write_atomically(path) as staged:
        staged.write_text("".join(kept), encoding="utf-8")


def forget_metrics(path: Path, is_first: bool) -> None:
    """Drops what a run noted that was killed before its first save, and begins again."""
    if is_first:
        log.info("%s had saved nothing yet: it begins again", path.parent)
        truncate_metrics(path, 0)


def _start_wandb(asked: str, folder: Path, settings: Mapping[str, object], run_id: str | None):  # type: ignore[no-untyped-def]
    mode = wandb_mode(asked)
    if mode is None:
        return None
    try:
        import wandb  # optional, and slow to import
    except ImportError as error:
        raise UserError(f"wandb={asked} needs the package: pip install 'euryale[train]', or use wandb=off.") from error
    if mode == "online" and not _answers(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")):
        log.warning("wandb: its server cannot be reached: offline from the start; later: wandb sync %s/wandb/*", folder)
        mode = "offline"
    log.info("wandb is %s, under %s", mode, folder)
    return wandb.init(
        project="euryale", name=folder.name, dir=folder, mode=mode, config=dict(settings), id=run_id, resume="allow"
    )


def _answers(url: str) -> bool:
    """Asked briefly: wandb itself would try for over a minute. A proxy, where one is set, is what is asked."""
    proxies = urllib.request.getproxies()
    address = urlsplit(proxies.get(urlsplit(url).scheme, url))
    try:
        port = address.port or (80 if address.scheme == "http" else 443)
        with socket.create_connection((address.hostname or "", port), timeout=CONNECT_TIMEOUT_S):
            return True
    except OSError:
        return False


def _flat(record: Mapping[str, object]) -> dict[str, object]:
    """wandb draws scalars: a list becomes one curve per head."""
    flat: dict[str, object] = {}
    for key, value in record.items():
        if isinstance(value, list):
            flat.update({f"{key}/{index}": item for index, item in enumerate(value)})
        else:
            flat[key] = value
    return flat
