"""How does the base write the text that its heads learn from?

Heads imitate the base, so the text that teaches most is what the base itself writes (self-distillation: Cai et al.
2024, section 3.3.2). Openings of the raw rows are continued, some greedily and some sampled, in batches by our own
engine, and kept as parquet shards with a manifest. The next run with the same base and settings finds them there; an
interrupted one goes on behind its last whole shard.
"""

import hashlib
import itertools
import json
import logging
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from euryale.data.openings import Opening, draw_openings
from euryale.data.rows import Row
from euryale.decoding.engine import Engine
from euryale.errors import UserError
from euryale.model.base import Base
from euryale.model.files import read_json, write_atomically, write_json
from euryale.progress import Progress
from euryale.serving.settings import RegenerateConfig

MANIFEST = "manifest.json"
FORMAT_VERSION = 1
log = logging.getLogger(__name__)


def check_settings(config: RegenerateConfig, base: Base) -> None:
    """Raises UserError for numbers that cannot be."""
    for name in ("num_prompts", "prompt_tokens", "new_tokens", "batch_size", "shard_rows"):
        if getattr(config, name) < 1:
            raise UserError(f"regenerate.{name}={getattr(config, name)} cannot be. Give a number of at least 1.")
    if not 0.0 <= config.greedy_share <= 1.0:
        raise UserError(f"regenerate.greedy_share={config.greedy_share} is no share. Give a number from 0 to 1.")
    if config.greedy_share < 1.0 and config.temperature <= 0.0:
        raise UserError(f"regenerate.temperature={config.temperature} cannot sample. Give a positive number.")
    if config.prompt_tokens + config.new_tokens > base.max_length:
        raise UserError(
            f"regenerate.prompt_tokens + new_tokens = {config.prompt_tokens + config.new_tokens}, and the context of "
            f"{base.path} ends at {base.max_length}. Lower one of them."
        )


def regenerate(
    base: Base,
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
    identity = {
        "base": base.identity(),
        "chat_template": hashlib.sha256((base.tokenizer.chat_template or "").encode()).hexdigest()[:16],
        "data": data_settings,
        "regenerate": {k: v for k, v in vars(config).items() if k not in ("output", "batch_size")},
    }
    name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    folder = root / f"{Path(base.path).name}-{name}"
    manifest = _read_manifest(folder, identity)
    if manifest["is_complete"]:
        log.info(
            "on-policy text: reusing %s (%d rows, %d tokens)", folder, manifest["num_rows"], manifest["num_tokens"]
        )
        return folder
    openings = draw_openings(rows, base.tokenizer, config.num_prompts, config.prompt_tokens, config.seed, on_error)
    openings = [o for o in openings if len(o.ids) + 2 <= base.max_length]
    if not openings:
        raise UserError(
            f"none of the prompts leaves room for an answer in the context of {base.path}, which ends at "
            f"{base.max_length}. Give data with shorter prompts."
        )
    first = len(manifest["shards"]) * config.shard_rows
    num_greedy = min(round(config.greedy_share * config.num_prompts), len(openings))
    if config.greedy_share < 1.0:
        # Too few openings: take them again, for other samples. A greedy answer would only be itself once more.
        openings = list(itertools.islice(itertools.cycle(openings), config.num_prompts))
    progress = Progress("base writes text", len(openings), "rows", start=first)
    engine = Engine(base, drafter="none")
    for start in range(first, len(openings), config.shard_rows):
        shard = [
            record
            for batch in _batches(start, min(start + config.shard_rows, len(openings)), num_greedy, config.batch_size)
            for record in _answer(engine, openings, batch, num_greedy, config, progress)
        ]
        file = folder / f"shard-{len(manifest['shards']):05d}.parquet"
        with write_atomically(file) as staged:
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(shard, schema=SCHEMA), staged)
        manifest["shards"].append(file.name)
        manifest["num_rows"] += len(shard)
        manifest["num_tokens"] += sum(len(r["ids"]) - r["num_prompt"] for r in shard)
        manifest["is_complete"] = start + config.shard_rows >= len(openings)
        write_json(folder / MANIFEST, manifest)
    progress.close()
    return folder


SCHEMA = pyarrow.schema(
    [
        ("ids", pyarrow.list_(pyarrow.int32())),
        ("num_prompt", pyarrow.int32()),
        ("key", pyarrow.string()),
        ("origin", pyarrow.string()),
        ("text", pyarrow.string()),
        ("seed", pyarrow.int64()),
        ("temperature", pyarrow.float32()),
    ]
)


def _read_manifest(folder: Path, identity: dict[str, Any]) -> dict[str, Any]:
    fresh = {
        "format_version": FORMAT_VERSION,
        **identity,
        "shards": [],
        "num_rows": 0,
        "num_tokens": 0,
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
        shutil.rmtree(folder)
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


def _batches(start: int, end: int, num_greedy: int, size: int) -> list[range]:
    """Index ranges of at most `size` rows, none of which holds both greedy and sampled rows."""
    batches = []
    while start < end:
        stop = min(start + size, end, num_greedy if start < num_greedy else end)
        batches.append(range(start, stop))
        start = stop
    return batches


def _answer(
    engine: Engine,
    openings: list[Opening],
    batch: range,
    num_greedy: int,
    config: RegenerateConfig,
    progress: Progress,
) -> list[dict[str, Any]]:
    temperature = 0.0 if batch.start < num_greedy else config.temperature
    seeds = [(config.seed * 1_000_003 + i) % 2**63 for i in batch]  # 2**63: what the noise takes
    generations = engine.generate([openings[i].ids for i in batch], config.new_tokens, temperature, seed=seeds)
    progress.advance(len(batch), tokens=sum(len(g.ids) for g in generations))
    return [
        {
            "ids": openings[i].ids + g.ids,
            "num_prompt": len(openings[i].ids),
            "key": openings[i].key,
            "origin": openings[i].origin,
            "text": g.text,
            "seed": seed,
            "temperature": temperature,
        }
        for i, g, seed in zip(batch, generations, seeds, strict=True)
    ]
