"""Result files of benchmarks: checked before work begins, written as a whole or one line appended."""

import json
from pathlib import Path
from typing import Any

from euryale.errors import UserError
from euryale.system.files import check_writable, write_json


def check_result(output: str | None) -> None:
    """Raises UserError when a result could not be written to `output=` (None: it is not), before it is measured."""
    if output is not None:
        check_writable(Path(output).parent, f"output={output}")


def write_result(file: Path, result: dict[str, Any]) -> None:
    """A .jsonl file gets one more line, any other name is (over)written. Raises UserError when the disk refuses."""
    if file.suffix != ".jsonl":
        write_json(file, result)
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(result) + "\n")
    except OSError as error:
        raise UserError(f"output={file} cannot be written: {error}. Give another file.") from error
