"""On-policy text: the base writes what its heads learn from.

Heads imitate the base, so the text that teaches most is what the base itself writes (self-distillation: Cai et al.
2024, section 3.3.2). Openings of the raw rows are continued, and questions of conversations answered turn by turn,
some greedily and some sampled, by our own engine or a server, and kept as parquet shards with a manifest. The next run
with the same base and settings finds them there; an interrupted one goes on after its last batch, with any number of
processes.
"""

import hashlib
import itertools
import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from euryale.base.base import Base
from euryale.base.base_info import UnloadedBase
from euryale.data.row_prompts import Opening, draw_openings
from euryale.data.rows import Row
from euryale.errors import UserError
from euryale.regenerate.completions import EngineWriter, ServerWriter, Writer
from euryale.regenerate.config import RegenerateConfig
from euryale.regenerate.conversations import converse
from euryale.regenerate.manifest import finish, folder_of, read_manifest, start, template_name
from euryale.regenerate.shards import batches_of, missing, save_part
from euryale.system import processes
from euryale.system.files import check_writable
from euryale.system.locks import alone
from euryale.system.progress import Progress

ROWS = 128  # of a batch that are decoded at once; one that ends makes room for the next
log = logging.getLogger(__name__)


def check_settings(config: RegenerateConfig, base: Base | UnloadedBase) -> None:
    """Raises UserError for numbers out of range, or a text that the base cannot hold."""
    config.check()
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
        "chat_template": template_name(base),
        "writer": "engine" if config.url is None else "server",
        "data": data_settings,
        "regenerate": {k: v for k, v in vars(config).items() if k not in ("output", "batch_size", "url")},
    }
    name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    folder = folder_of(root, base.path, name)
    manifest = processes.first(lambda: read_manifest(folder, identity))
    is_there = manifest["is_complete"]
    if not is_there:
        openings = _choose(base, rows, config, on_error)
        with _alone(folder):
            manifest = processes.first(lambda: start(folder, identity))
            if not manifest["is_complete"]:
                _write_missing(base, openings, config, folder)
                manifest = processes.first(lambda: finish(folder, manifest, config))
    if config.new_tokens > 1 and manifest["num_tokens"] <= manifest["num_rows"]:
        raise UserError(
            f"the base must write answers; got its end token alone after all {manifest['num_rows']} prompts. Check the "
            f"chat template of {base.path}, or give other data (data=...)."
        )
    told = "on-policy text: %s%d rows, %d tokens in %s; %d exact duplicates dropped"
    counts = (manifest["num_rows"], manifest["num_tokens"], folder, manifest["num_duplicates"])
    log.info(told, "reusing " if is_there else "", *counts)
    return folder


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
    return EngineWriter(base, min(config.batch_size, ROWS))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Jobs of a sweep want the same set at the same time: one writes it, and the others wait."""
    if not processes.is_first():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    told = "on-policy text: another process is writing %s: waiting for it"
    with alone(folder / ".writing.lock", lambda: log.info(told, folder)):
        yield


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
