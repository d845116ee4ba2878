"""Result files of benchmarks: checked before work begins, written as a whole or one line appended."""

import json
from pathlib import Path
from typing import Any

from euryale.errors import UserError
from euryale.system import processes
from euryale.system.files import check_writable, read_json, write_json
from euryale.system.paths import user_path


def check_result(output: str | None) -> None:
    """Raises UserError when a result could not be written to `output=` (None: it is not), before it is measured.

    A file is only written over when it holds an earlier result.
    """
    if output is None or not processes.is_first():
        return
    file = user_path(output, "output")
    check_writable(file.parent, f"output={output}")
    if file.is_dir():
        raise UserError(f"output must be a file; got the folder {output}. Give a .json or .jsonl file in it.")
    if file.is_file() and file.suffix != ".jsonl" and not _is_result(file):
        raise UserError(
            f"output must be a new file or an earlier result; got {output}, which holds something else. Give another."
        )


def _is_result(file: Path) -> bool:
    """Whether a file holds what `write_result` writes. A run's report.json is not one: its plots belong to it."""
    try:
        content = read_json(file)
    except UserError:
        return False
    return {"hardware", "provenance"} <= content.keys() and "training" not in content


def write_result(file: Path, result: dict[str, Any]) -> None:
    """A .jsonl file gets one more line, any other name is (over)written. Of several processes the first one writes.

    Raises UserError when the disk refuses.
    """
    if not processes.is_first():
        return
    if file.suffix != ".jsonl":
        write_json(file, result)
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(result) + "\n")
    except OSError as error:
        raise UserError(f"output={file} cannot be written: {error}. Give another file.") from error
