"""The source of rows that the settings of the data stage describe.

A source is built from the inside out: records (the standard library, files, the hub, regenerated shards, or a mixture
of such sources), joined lines, the held-out split, shuffling by windows.
"""

from __future__ import annotations

import dataclasses
import glob
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from euryale.data.config import DataConfig
from euryale.data.documents import PIECES
from euryale.data.file_source import FileSource, file_row, library_files, library_row, shard_files, shard_row
from euryale.data.hub_source import HubSource
from euryale.data.named_files import find_files
from euryale.data.rows import Message, Row, Source
from euryale.data.transforms import Joined, Mix, Shuffled, Split
from euryale.errors import UserError, check_option
from euryale.system.paths import user_path

__all__ = ["SOURCES", "SPLITS", "Message", "Row", "Source", "build_source"]

SPLITS = ("train", "held_out")


def build_source(config: DataConfig, split: str) -> Source:
    """The rows of `split` (train or held_out).

    Everything a user can get wrong about paths, names and numbers is said here; bad rows are met while reading.
    """
    check_option("split", split, SPLITS)
    config.check()
    return SOURCES[config.kind](config, split)


def is_gone(config: DataConfig) -> bool:
    """Whether rows that lay on a disk are not on this machine, as with heads that came from another one."""
    parts = [dict(part) for part in config.mix] if config.kind == "mix" else [vars(config)]
    for part in parts:
        names = _names(part.get({"regenerated": "folder", "files": "files"}.get(str(part.get("kind")), "")))
        places = [user_path(name, "data.files") for name in names]
        if any(not place.exists() and not glob.glob(str(place)) for place in places):
            return True
    return False


def notices(config: DataConfig) -> list[str]:
    """What a person should know of the files that are named: how many of a folder are not read. Raises UserError as
    `build_source` does."""
    parts = [dict(part) for part in config.mix] if config.kind == "mix" else [vars(config)]
    named = [_names(part.get("files", "")) for part in parts if part.get("kind") == "files"]
    return [notice for names in named for notice in find_files(names).notices]


def _library(config: DataConfig, split: str) -> Source:
    source = FileSource(library_files(config.modules), library_row, config.seed, config.on_error, PIECES)
    return _split_and_shuffle(source, config, split)


def _files(config: DataConfig, split: str) -> Source:
    to_row = partial(file_row, column=config.column)
    paths = find_files(_names(config.files)).paths
    source = FileSource(paths, to_row, config.seed, config.on_error, config.text_separator)
    return _split_and_shuffle(source, config, split)


def _hub(config: DataConfig, split: str) -> Source:
    source: Source = HubSource(
        config.repo,
        config.subset,
        config.split,
        _names(config.data_files),
        config.revision,
        config.streaming,
        config.column,
        config.on_error,
        config.num_retries,
    )
    if config.join_rows:
        if config.text_separator == "auto":
            raise UserError("data.join_rows=true needs data.text_separator, for example headings for WikiText")
        source = Joined(source, config.text_separator)
    return _split_and_shuffle(source, config, split)


def _regenerated(config: DataConfig, split: str) -> Source:
    source = FileSource(
        shard_files(user_path(str(config.folder), "data.folder")), shard_row, config.seed, config.on_error
    )
    return _split_and_shuffle(source, config, split)


def _unwritten(config: DataConfig, split: str) -> Source:
    raise UserError(
        "data=self has no rows until the base has written its questions. Use train/run.py or train/regenerate.py, "
        "which write them first; they stay as a file for data=files."
    )


def _mix(config: DataConfig, split: str) -> Source:
    if not config.mix:
        raise UserError(
            "data=mix needs data.mix, a list like [{kind: stdlib, weight: 1}, {kind: files, files: a.txt, weight: 3}]"
        )
    sources, weights = [], []
    for number, entry in enumerate(config.mix):
        settings = dict(entry) if isinstance(entry, Mapping) else {}
        weight = settings.pop("weight", None)
        if not isinstance(weight, (int, float)) or weight <= 0:
            raise UserError(f"data.mix[{number}] must be a weight above 0 and the settings of a source; got {entry!r}")
        child = _child(config, settings, number)
        child.check()
        sources.append(SOURCES[child.kind](child, split))
        weights.append(float(weight))
    return Mix(sources, weights, config.seed, repeat=split == "train")


SOURCES: dict[str, Callable[[DataConfig, str], Source]] = {
    "stdlib": _library,
    "files": _files,
    "hub": _hub,
    "mix": _mix,
    "regenerated": _regenerated,
    "self": _unwritten,
}


def _split_and_shuffle(source: Source, config: DataConfig, split: str) -> Source:
    source = Split(source, split == "held_out", config.held_out_one_in)
    return Shuffled(source, config.shuffle_window, config.seed) if config.shuffle_window > 1 else source


def _child(parent: DataConfig, settings: dict[str, Any], number: int) -> DataConfig:
    """The settings of one part of a mixture: its own, and the mixture's for what it does not say."""
    shared = ("mix", "block_size", "batch_size", "regenerate")  # of the mixture as a whole
    known = [item.name for item in dataclasses.fields(DataConfig) if item.name not in shared]
    if unknown := sorted(set(settings) - set(known)):
        options = ", ".join(["weight", *known])
        raise UserError(f"data.mix[{number}] has unknown settings: {', '.join(unknown)}. Known: {options}")
    if "kind" not in settings:
        raise UserError(f"data.mix[{number}] must name its kind: {', '.join(SOURCES)}; got {settings}.")
    child = dataclasses.replace(parent, mix=[], **settings)
    for name, value in settings.items():
        default = getattr(DataConfig(), name)
        expected = str if default is None else type(default)
        if name not in ("files", "data_files") and type(value) is not expected:
            raise UserError(f"data.mix[{number}].{name} must be of type {expected.__name__}; got {value!r}")
    if child.kind == "mix":
        raise UserError(f"data.mix[{number}] must not be a mixture itself; list its sources here instead.")
    return child


def _names(value: object) -> list[str]:
    """One name or a list of names."""
    if isinstance(value, str):
        return [value] if value else []
    return [str(name) for name in value] if isinstance(value, Sequence) else []
