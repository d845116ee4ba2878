"""Documents cut from running text that comes line by line.

Five rules, chosen by `data.text_separator`:

    <|endoftext|>   or any other string: that string stands between documents
    headings        WikiText: a line " = Title = " after a blank line begins a document (" = = Section = = " does not)
    paragraphs      paragraphs, divided by blank lines, are grouped until a document has PARAGRAPHS_CHARS characters;
                    text without blank lines is cut at the end of a line after four times as many
    lines           every line is a document
    whole           the file is one document

`auto` looks at the beginning of the file: <|endoftext|> when it occurs there, else headings when there is one, else
paragraphs. Nothing but the newlines around a document is dropped. A line ends at \\n alone: the other characters that
`str.splitlines` cuts at (\\x0b, \\x0c, \\x1c to \\x1e, \\x85, \\u2028, \\u2029) belong to the text.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

END_OF_TEXT = "<|endoftext|>"
PARAGRAPHS_CHARS = 4000  # about a thousand tokens
PIECES = "pieces"  # paragraphs in smaller groups: how modules of the library become rows
PIECES_CHARS = 700
PROBE_CHARS = 1 << 20  # how much of a file `auto` looks at
_HEADING = re.compile(r" ?= (?!= )[^=\n]*[^=\s] = *$")


class Document(NamedTuple):
    """`line` is the number of the line it begins on, from 1."""

    line: int
    text: str


def lines_of(text: str) -> list[str]:
    """The lines of a text as a file gives them, each with its newline."""
    return io.StringIO(text).readlines()


def find_rule(separator: str, beginning: str) -> str:
    """`separator`, with `auto` decided by the first PROBE_CHARS characters of a text."""
    if separator != "auto":
        return separator
    if END_OF_TEXT in beginning:
        return END_OF_TEXT
    lines = beginning.split("\n")
    has_heading = any(_is_heading(line, previous) for line, previous in zip(lines, ["", *lines], strict=False))
    return "headings" if has_heading else "paragraphs"


class Splitter:
    """Push lines, get documents. `pending` is the text after the last boundary: all there is to save."""

    def __init__(self, rule: str, pending: str = "") -> None:
        self.rule = rule
        self._parts = lines_of(pending)
        self._size = len(pending)

    @property
    def pending(self) -> str:
        return "".join(self._parts)

    def push(self, line: str) -> list[str]:
        """The texts of the documents that this line ends (they may be blank); a line carries its newline."""
        finished = []
        continuing, *beginning = self._cut(line)
        self._add(continuing)
        for piece in beginning:
            finished.append(self.flush())
            self._add(piece)
        return finished

    def flush(self) -> str:
        """What is pending, as a document."""
        text = self.pending.strip("\n")
        self._parts, self._size = [], 0
        return text

    def _add(self, piece: str) -> None:
        self._parts.append(piece)
        self._size += len(piece)

    def _cut(self, line: str) -> list[str]:
        """The line in pieces: the first belongs to the pending document, every further one begins another."""
        if self.rule == "whole":
            return [line]
        if self.rule == "lines":
            return [line, ""]
        if self.rule == "headings":
            return ["", line] if _is_heading(line, self._parts[-1] if self._parts else "") else [line]
        if self.rule in ("paragraphs", PIECES):
            size, least = self._size + len(line), PIECES_CHARS if self.rule == PIECES else PARAGRAPHS_CHARS
            is_boundary = size >= least and not line.strip() or size >= 4 * least
            return [line, ""] if is_boundary else [line]
        return line.split(self.rule)


def _is_heading(line: str, previous: str) -> bool:
    # A formula can look like a title, but stands right after its sentence.
    return not previous.strip() and _HEADING.match(line) is not None


def split_documents(lines: Iterable[str], rule: str) -> Iterator[Document]:
    """The documents that are not blank."""
    splitter = Splitter(rule)
    first_line = 1
    for number, line in enumerate(lines, start=1):
        texts = splitter.push(line)
        for text in texts:
            if text.strip():
                yield Document(first_line, text)
            first_line = number
        if texts and not splitter.pending.strip("\n"):
            first_line = number + 1
    if (text := splitter.flush()).strip():
        yield Document(first_line, text)
