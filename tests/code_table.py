"""Prints the table of CONTRIBUTING.md: python tests/code_table.py"""

import ast
import statistics
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "euryale"
# What has to be known before the decode loop is changed, by the room that it lives in.
CONCEPTS = {
    "base": "Base",
    "heads": "Heads",
    "decoding/tree": "Tree",
    "decoding/drafters": "Drafter, DraftInput",
    "decoding": "KVCache, Decoder, VerifyOutput, Sampling, Request, Scheduler, Engine",
}
ROOMS = [
    "cli", "report", "server", "evaluation", "regenerate", "export.py", "decoding", "decoding/tree",
    "decoding/drafters", "training", "heads", "base", "kernels", "kernels/triton",
    "kernels/cuda", "data", "system",
]  # fmt: skip


def row(room: str) -> str | None:
    """The files of a room itself, without empty ones; None where there are none."""
    place = PACKAGE / room
    files = [place] if place.is_file() else sorted(place.glob("*.py"))
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    lines = {path: count for path, count in lines.items() if count}
    if not lines:
        return None
    longest = max(lines, key=lambda path: lines[path])
    nodes = [node for path in lines for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    functions = [n.end_lineno - n.lineno + 1 for n in nodes if isinstance(n, ast.FunctionDef) and n.end_lineno]
    name = room if place.is_file() else f"{room}/"
    cells = [name, len(lines), round(statistics.median(lines.values())), f"{lines[longest]} ({longest.name})"]
    return f"| {' | '.join(map(str, [*cells, max(functions, default=0), CONCEPTS.get(room, '')]))} |"


if __name__ == "__main__":
    print("| room | files | median lines | longest file | longest function | concepts |\n|---|---|---|---|---|---|")
    print("\n".join(filter(None, map(row, ROOMS))))
