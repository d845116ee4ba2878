"""The manifest of a folder of regenerated text: what was asked, what was written, whether it is whole."""

import glob
import hashlib
import logging
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet

from euryale.base.base import Base
from euryale.base.base_info import UnloadedBase
from euryale.data.chat_template import chat_template
from euryale.errors import UserError
from euryale.regenerate.config import RegenerateConfig
from euryale.regenerate.shards import make_shards, parts_of
from euryale.system.files import read_json, write_json

MANIFEST = "manifest.json"
FORMAT_VERSION = 2
log = logging.getLogger(__name__)


def folder_of(root: Path, base_path: str, digest: str, kind: str = "") -> Path:
    """Where the set of this digest lies below `root`, named after its base without what some file systems refuse; one
    that is there under another name of the same base is taken as it is."""
    name = re.sub(r'[<>:"|?*\\\x00-\x1f]', "-", Path(base_path).name)
    there = sorted(glob.glob(f"{glob.escape(str(root))}/{kind}*-{digest}"))
    return Path(there[0]) if there else root / f"{kind}{name}-{digest}"


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
    if manifest.get("chat_template") != template_name(base):
        raise UserError(
            f"{folder} was written with another chat template ({manifest.get('chat_template')}) than {base.path} has "
            f"now ({template_name(base)}). Restore the template, or write anew: train/regenerate.py."
        )


def start(folder: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """The manifest of a set that is finished, or that says what is being written."""
    manifest = read_manifest(folder, identity)
    if manifest["is_complete"]:
        shutil.rmtree(parts_of(folder), ignore_errors=True)  # of a run that was killed at its very end
    elif not (folder / MANIFEST).is_file():
        write_json(folder / MANIFEST, manifest)
    return manifest


def finish(folder: Path, manifest: dict[str, Any], config: RegenerateConfig) -> dict[str, Any]:
    manifest = manifest | make_shards(folder, config.shard_rows) | {"is_complete": True}
    write_json(folder / MANIFEST, manifest)
    shutil.rmtree(parts_of(folder), ignore_errors=True)
    return manifest


def read_manifest(folder: Path, identity: dict[str, Any]) -> dict[str, Any]:
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
    counts = [manifest[key] for key in ("num_rows", "num_tokens", "num_duplicates")]
    names = manifest["shards"]
    are_names = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not are_names or not all(type(count) is int and count >= 0 for count in counts):
        return f"{MANIFEST} does not say what there is"
    num_rows = 0
    for name in names:
        try:
            num_rows += pyarrow.parquet.read_metadata(folder / name).num_rows
        except (OSError, pyarrow.ArrowException) as error:
            return f"{name}: {error}"
    return "" if num_rows == manifest["num_rows"] else f"{num_rows} rows, and {MANIFEST} counts {manifest['num_rows']}"


def template_name(base: Base | UnloadedBase) -> str:
    return hashlib.sha256((chat_template(base.tokenizer) or "").encode()).hexdigest()[:16]
