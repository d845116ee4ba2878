"""How does the base write the text that its heads learn from?

Heads imitate the base, so the text that teaches most is what the base itself writes (self-distillation: Cai et al.
2024, section 3.3.2). Openings of the raw rows are continued, and questions of conversations answered turn by turn,
some greedily and some sampled, by our own engine or a server, and kept as parquet shards with a manifest. The next run
with the same base and settings finds them there; an interrupted one goes on behind its last batch, with any number of
processes.
"""

import hashlib
import itertools
import json
import logging
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from filelock import FileLock, Timeout

from euryale import processes
from euryale.data.openings import Opening, draw_openings
from euryale.data.rows import Row
from euryale.errors import UserError
from euryale.model.base import Base
from euryale.model.files import check_writable, read_json, write_json
from euryale.model.unloaded import UnloadedBase
from euryale.progress import Progress
from euryale.serving.conversations import converse
from euryale.serving.parts import batches_of, make_shards, missing, parts_of, save_part
from euryale.serving.settings import RegenerateConfig
from euryale.serving.writers import EngineWriter, ServerWriter, Writer

MANIFEST = "manifest.json"
FORMAT_VERSION = 2
log = logging.getLogger(__name__)


def check_settings(config: RegenerateConfig, base: Base | UnloadedBase) -> None:
    """Raises UserError for numbers that cannot be."""
    for name in ("num_prompts", "prompt_tokens", "new_tokens", "batch_size", "shard_rows", "max_turns"):
        if getattr(config, name) < 1:
            raise UserError(f"regenerate.{name}={getattr(config, name)} cannot be. Give a number of at least 1.")
    if not 0.0 <= config.greedy_share <= 1.0:
        raise UserError(f"regenerate.greedy_share={config.greedy_share} is no share. Give a number from 0 to 1.")
    if config.greedy_share < 1.0 and config.temperature <= 0.0:
        raise UserError(f"regenerate.temperature={config.temperature} cannot sample. Give a positive number.")
    if config.url is not None and not config.url.startswith(("http://", "https://")):
        raise UserError(f"regenerate.url={config.url} is no address. Give one as http://HOST:8000/v1.")
    if config.prompt_tokens + config.new_tokens > base.max_length:
        raise UserError(
            f"regenerate.prompt_tokens + new_tokens = {config.prompt_tokens + config.new_tokens}, and the context of "
            f"{base.path} ends at {base.max_length}. Lower one of them."
        )


def regenerate(
    base: Base | UnloadedBase,
    rows: Iterable[Row],
    data_settings: dict[str, Any],
    config: RegenerateConfig,
    root: Path,
    on_error: str = "stop",
) -> Path:
    """Writes the set, or what is missing of it; returns its folder below `root`.

    The folder's name is a hash of base, data settings and generation settings, so another setting is another set.
    Raises UserError for impossible settings, or rows without a prompt that fits the base.
    """
    check_settings(config, base)
    processes.first(lambda: check_writable(root, f"regenerate.output={config.output}"))
    identity = {
        "base": base.identity(),
        "chat_template": _template(base),
        "writer": "engine" if config.url is None else "server",
        "data": data_settings,
        "regenerate": {k: v for k, v in vars(config).items() if k not in ("output", "batch_size", "url")},
    }
    name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    folder = root / f"{Path(base.path).name}-{name}"
    found = processes.first(lambda: _read_manifest(folder, identity))
    if found["is_complete"]:
        log.info("on-policy text: reusing %s (%d rows, %d tokens)", folder, found["num_rows"], found["num_tokens"])
        return folder
    openings = _choose(base, rows, config, on_error)
    with _alone(folder):
        manifest = processes.first(lambda: _start(folder, identity))
        if not manifest["is_complete"]:
            _write_missing(base, openings, config, folder)
            manifest = processes.first(lambda: _finish(folder, manifest, config))
    log.info(
        "on-policy text: %d rows, %d tokens in %s; %d exact duplicates dropped",
        manifest["num_rows"],
        manifest["num_tokens"],
        folder,
        manifest["num_duplicates"],
    )
    return folder


def check_written(folder: Path, base: Base | UnloadedBase) -> None:
    """Raises UserError for a set that is not finished, or that another base or chat template made."""
    manifest = read_json(folder / MANIFEST)
    made_by, own = manifest.get("base", {}), base.identity()
    if manifest.get("is_complete") is not True:
        raise UserError(f"{folder} is not finished. Go on with train/regenerate.py and the settings it began with.")
    if made_by.get("fingerprint") != own["fingerprint"]:
        raise UserError(
            f"{folder} was written by another base: {made_by.get('path')} (fingerprint {made_by.get('fingerprint')}), "
            f"not {own['path']} ({own['fingerprint']}). Train that base, or let this one write: train/regenerate.py."
        )
    if manifest.get("chat_template") != _template(base):
        raise UserError(
            f"{folder} was written with another chat template ({manifest.get('chat_template')}) than {base.path} has "
            f"now ({_template(base)}). Restore the template, or write anew: train/regenerate.py."
        )


def _choose(base: Base | UnloadedBase, rows: Iterable[Row], config: RegenerateConfig, on_error: str) -> list[Opening]:
    openings = draw_openings(rows, base.tokenizer, config.num_prompts, config.prompt_tokens, config.seed, on_error)
    openings = [o for o in openings if len(o.ids) + 2 <= base.max_length]
    if not openings:
        raise UserError(
            f"none of the prompts leaves room for an answer in the context of {base.path}, which ends at "
            f"{base.max_length}. Give data with shorter prompts."
        )
    if config.greedy_share < 1.0:
        # Too few openings: take them again, for other samples. A greedy answer would only be itself once more.
        num_unique = len(openings)
        openings = list(itertools.islice(itertools.cycle(openings), config.num_prompts))
        log.debug("%d openings, %d of them different", len(openings), num_unique)
    return openings


def _write_missing(base: Base | UnloadedBase, openings: list[Opening], config: RegenerateConfig, folder: Path) -> None:
    """Each process writes its share of what no part covers."""
    num_different = len({(o.key, tuple(o.ids)) for o in openings})
    num_greedy = min(round(config.greedy_share * config.num_prompts), num_different)
    todo = processes.first(lambda: missing(folder, len(openings)))
    batches = batches_of(todo, num_greedy, config.batch_size)
    if 0 < len(batches) < processes.count():
        log.warning(
            "%d processes, and only %d batches of up to %d openings are to be written: %d have nothing to do. "
            "Lower regenerate.batch_size, or start fewer processes",
            processes.count(), len(batches), config.batch_size, processes.count() - len(batches),
        )  # fmt: skip
    own = batches[processes.number() :: processes.count()]
    if own:
        writer = _writer(base, config)
        share = f" (process 0 of {processes.count()})" if processes.count() > 1 else ""
        num_rows = sum(map(len, own))
        done = len(openings) - len(todo) if not share else 0
        progress = Progress(f"base writes text{share}", done + num_rows, "rows", done, processes.is_first())
        for batch in own:
            records = _answer(writer, base, openings, batch, num_greedy, config)
            save_part(folder, batch, records)
            progress.advance(len(batch), tokens=sum(len(r["ids"]) - r["num_prompt"] for r in records))
        progress.close()
    processes.wait()


def _writer(base: Base | UnloadedBase, config: RegenerateConfig) -> Writer:
    if config.url is not None:
        return ServerWriter(config.url, config.model, base)
    assert isinstance(base, Base), "without a server the base itself writes"
    return EngineWriter(base, config.batch_size)


def _start(folder: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """The manifest of a set that is finished, or that says what is being written."""
    manifest = _read_manifest(folder, identity)
    if manifest["is_complete"]:
        shutil.rmtree(parts_of(folder), ignore_errors=True)  # of a run that was killed at its very end
    elif not (folder / MANIFEST).is_file():
        write_json(folder / MANIFEST, manifest)
    return manifest


def _finish(folder: Path, manifest: dict[str, Any], config: RegenerateConfig) -> dict[str, Any]:
    manifest = manifest | make_shards(folder, config.shard_rows) | {"is_complete": True}
    write_json(folder / MANIFEST, manifest)
    shutil.rmtree(parts_of(folder), ignore_errors=True)
    return manifest


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Jobs of a sweep want the same set at the same time: one writes it, and the others wait."""
    if not processes.is_first():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / ".writing.lock"
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("on-policy text: another process is writing %s: waiting for it", folder)
        lock.acquire()
    try:
        yield
    finally:
        file.unlink(missing_ok=True)  # while it is held: who waits opens it anew at every try
        lock.release()


def _template(base: Base | UnloadedBase) -> str:
    return hashlib.sha256((base.tokenizer.chat_template or "").encode()).hexdigest()[:16]


def _read_manifest(folder: Path, identity: dict[str, Any]) -> dict[str, Any]:
    fresh = {
        "format_version": FORMAT_VERSION,
        **identity,
        "shards": [],
        "num_rows": 0,
        "num_tokens": 0,
        "num_duplicates": 0,
        "is_complete": False,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    if not (folder / MANIFEST).is_file():
        return fresh
    try:
        manifest = read_json(folder / MANIFEST)
        problem = _find_damage(folder, manifest, list(fresh))
    except UserError as error:
        manifest, problem = fresh, str(error)
    if problem:
        log.warning("on-policy text: %s is not whole (%s): writing it anew", folder, problem)
        for path in [folder / MANIFEST, *folder.glob("shard-*.parquet")]:
            path.unlink(missing_ok=True)
        return fresh
    return manifest


def _find_damage(folder: Path, manifest: dict[str, Any], keys: list[str]) -> str:
    """What is wrong with a set that was written earlier; "" when it is whole. Reads the end of every shard."""
    if manifest.get("format_version") != FORMAT_VERSION or set(manifest) != set(keys):
        return f"{MANIFEST} is of another format"
    num_rows = 0
    for name in manifest["shards"]:
        try:
            num_rows += pyarrow.parquet.read_metadata(folder / name).num_rows
        except (OSError, pyarrow.ArrowException) as error:
            return f"{name}: {error}"
    return "" if num_rows == manifest["num_rows"] else f"{num_rows} rows, and {MANIFEST} counts {manifest['num_rows']}"


def _answer(
    writer: Writer,
    base: Base | UnloadedBase,
    openings: list[Opening],
    batch: range,
    num_greedy: int,
    config: RegenerateConfig,
) -> list[dict[str, Any]]:
    temperature = 0.0 if batch.start < num_greedy else config.temperature
    seeds = [(config.seed * 1_000_003 + i) % 2**63 for i in batch]  # 2**63: what the noise takes
    chosen = [openings[i] for i in batch]
    return converse(writer, base, chosen, config.new_tokens, temperature, seeds, config.max_turns)
