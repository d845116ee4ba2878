"""Storage of regenerated text: neither a kill nor another number of processes loses a row.

Every batch of openings becomes a part of its own, named by the range of openings it answers, which appears whole or not
at all. What is missing is what no part covers. When all is there, the parts become shards, without exact duplicates.
"""

import hashlib
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from euryale.system.files import write_atomically

SCHEMA = pyarrow.schema(
    [
        ("ids", pyarrow.list_(pyarrow.int32())),
        ("num_prompt", pyarrow.int32()),
        ("spans", pyarrow.list_(pyarrow.int32())),  # start and end of each answer, where there are several
        ("key", pyarrow.string()),
        ("origin", pyarrow.string()),
        ("text", pyarrow.string()),
        ("seed", pyarrow.int64()),
        ("temperature", pyarrow.float32()),
    ]
)
log = logging.getLogger(__name__)


def save_part(folder: Path, openings: range, records: list[dict[str, Any]]) -> None:
    """What was written after these openings (a step of 1), in their order."""
    _write(parts_of(folder) / f"part-{openings.start:09d}-{openings.stop:09d}.parquet", records)


def missing(folder: Path, count: int) -> list[int]:
    """The openings, of `count`, that no whole part covers. A part that cannot be read is removed."""
    is_there = [False] * count
    for path in sorted(parts_of(folder).glob("part-*.parquet")):
        try:
            pyarrow.parquet.read_metadata(path)
        except (OSError, pyarrow.ArrowException) as error:
            log.warning("%s is damaged (%s): writing it anew", path, error)
            path.unlink()
            continue
        start, stop = _range_of(path)
        is_there[start:stop] = [True] * (stop - start)
    return [index for index, there in enumerate(is_there) if not there]


def batches_of(openings: list[int], num_greedy: int, size: int) -> list[range]:
    """Unbroken ranges of at most `size` openings, none of which holds both greedy and sampled ones."""
    batches: list[range] = []
    for index in openings:
        last = batches[-1] if batches else range(0)
        if batches and index == last.stop and len(last) < size and index != num_greedy:
            batches[-1] = range(last.start, index + 1)
        else:
            batches.append(range(index, index + 1))
    return batches


def make_shards(folder: Path, shard_rows: int) -> dict[str, Any]:
    """Turns all parts into shards; returns what the manifest says of them. The parts stay."""
    names: list[str] = []
    counts = {"num_rows": 0, "num_tokens": 0, "num_duplicates": 0}
    shard: list[dict[str, Any]] = []

    def close() -> None:
        if shard:
            names.append(f"shard-{len(names):05d}.parquet")
            _write(folder / names[-1], shard)
            shard.clear()

    for record in _without_duplicates(_records(folder), counts):
        counts["num_rows"] += 1
        counts["num_tokens"] += len(record["ids"]) - record["num_prompt"]
        shard.append(record)
        if len(shard) == shard_rows:
            close()
    close()
    return {"shards": names, **counts}


def parts_of(folder: Path) -> Path:
    """Where the parts of an unfinished set are."""
    return folder / "parts"


def _records(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(parts_of(folder).glob("part-*.parquet"), key=_range_of):
        yield from pyarrow.parquet.read_table(path).to_pylist()


def _without_duplicates(records: Iterable[dict[str, Any]], counts: dict[str, int]) -> Iterator[dict[str, Any]]:
    """The first of rows with equal tokens: a greedy answer to the same prompt, a short answer that was drawn twice."""
    seen: set[bytes] = set()
    for record in records:
        digest = hashlib.sha1(pyarrow.array(record["ids"], pyarrow.int32()).buffers()[1].to_pybytes()).digest()
        if digest in seen:
            counts["num_duplicates"] += 1
            continue
        seen.add(digest)
        yield record


def _range_of(path: Path) -> tuple[int, int]:
    _, start, stop = path.stem.split("-")
    return int(start), int(stop)


def _write(path: Path, records: list[dict[str, Any]]) -> None:
    with write_atomically(path) as staged:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records, schema=SCHEMA), staged)
