"""The suite `context`: the same question after texts of growing length, so that acceptance can be read off by length.

Prose is this project's own pages, code its own source. The texts of one number end at the same place whatever their
length: only how much stands before it differs. Lengths are characters, so that the questions are the same for every
base; a token of English is about four.
"""

from pathlib import Path

from euryale.system.paths import PROJECT

LENGTHS = (1_000, 4_000, 12_000, 24_000)
TASKS = {f"{kind} {length // 1000}k": (kind, length) for kind in ("prose", "code") for length in LENGTHS}
_EACH = 8  # questions of a task
_QUESTIONS = {
    "prose": "The text above is the end of some pages. Explain in your own words what its last part says.",
    "code": "The text above is the end of some source files. Explain what the last function does, step by step.",
}


def context_questions(project: Path = PROJECT) -> list[tuple[str, str, str]]:
    """(task, key, question) of every task, `_EACH` of each; nothing where the project's pages are not installed."""
    texts = {"prose": _joined(project, "docs/*.md"), "code": _joined(project, "src/euryale/decoding/**/*.py")}
    found = []
    for task, (kind, length) in TASKS.items():
        text = texts[kind]
        room = len(text) - max(LENGTHS)
        for number in range(_EACH if room > 0 else 0):
            end = max(LENGTHS) + room * (number + 1) // _EACH
            found.append((task, f"{kind} {number}", f"{text[end - length : end]}\n\n{_QUESTIONS[kind]}"))
    return found


def _joined(project: Path, pattern: str) -> str:
    return "\n\n".join(file.read_text(encoding="utf-8") for file in sorted(project.glob(pattern)))
