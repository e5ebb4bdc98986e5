"""Changed lines between two blobs, each run of them with the symbol it stands in; and where text is.

What is said about upstream rests on these: two diffs agree only when they remove and add the same
bytes in the same symbol. Nothing here ignores white space.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from tool.analysis.outline import MODULE, Outline, Outlines
from tool.git import NULL_OID, Git

_SIGNIFICANT: Final = 8
"""Letters and digits a run of lines must have before finding it somewhere says anything."""


@dataclass(frozen=True)
class Block:
    """One run of changed lines without context.

    ``old_line`` and ``new_line`` are 1-based; where a side has no lines, the line before the gap.
    """

    path: str
    old_line: int
    new_line: int
    removed: tuple[bytes, ...]
    added: tuple[bytes, ...]
    symbol: str

    def same_change(self, other: Block) -> bool:
        return (self.removed, self.added, self.symbol) == (
            other.removed,
            other.added,
            other.symbol,
        )

    def touches(self, other: Block) -> bool:
        """Do both change the same or neighbouring lines of one old file? One line apart counts."""
        ours, theirs = self.old_line + len(self.removed), other.old_line + len(other.removed)
        return self.old_line <= theirs + 1 and other.old_line <= ours + 1

    @property
    def place(self) -> str:
        """Where it is in the old file, if that is the one that a patch was written on."""
        return format_place(self.path, self.symbol, self.old_line)

    def format(self) -> Iterator[str]:
        """The run as a person reads a diff."""
        yield from (f"-{decode_line(line)}" for line in self.removed)
        yield from (f"+{decode_line(line)}" for line in self.added)


def format_place(path: str, symbol: str, line: int) -> str:
    """What a patch changes, with the line that it had in the file that the patch was written on."""
    return f"{path}, {symbol} (line {max(1, line)} when the patch was written)"


def format_lines(numbers: Sequence[int]) -> str:
    """Line numbers, at least one, as they are read aloud: ``lines 3, 8 and 12``."""
    *others, last = map(str, numbers)
    return f"lines {', '.join(others)} and {last}" if others else f"line {last}"


class Source:
    """A file's lines and outline, by blob id."""

    def __init__(self, git: Git, outlines: Outlines, blob: str) -> None:
        self.blob = blob
        content = git.blobs([blob])[blob] if blob != NULL_OID else b""
        self.lines: Sequence[bytes] = content.split(b"\n")
        self.parses = True
        self.outline: Outline = outlines.nothing
        if blob != NULL_OID:
            try:
                self.outline = outlines.of(blob)
            except SyntaxError:
                self.parses = False

    def find(self, lines: Sequence[bytes]) -> list[int]:
        """1-based first lines of every place that holds ``lines`` in a row."""
        if not lines:
            return []
        size = len(lines)
        first, rest = lines[0], list(lines)
        return [
            at + 1
            for at, line in enumerate(self.lines)
            if line == first and list(self.lines[at : at + size]) == rest
        ]

    def count(self, lines: Sequence[bytes], symbol: str) -> int:
        return sum(self.outline.symbol_at(at) == symbol for at in self.find(lines))

    def has(self, symbol: str) -> bool:
        return symbol == MODULE or any(span.name == symbol for span in self.outline.spans)

    def body(self, symbol: str) -> Sequence[bytes]:
        """The lines of a definition; empty when it is not there."""
        for span in self.outline.spans:
            if span.name == symbol:
                return self.lines[span.first - 1 : span.last]
        return ()


def changed_blocks(
    git: Git, path: str, before: str, after: str, outlines: Outlines
) -> tuple[Block, ...]:
    """The runs that turn blob ``before`` into ``after``; NULL_OID is an empty file."""
    if before == after:
        return ()
    if NULL_OID in (before, after):
        gone = Source(git, outlines, before).lines if before != NULL_OID else ()
        come = Source(git, outlines, after).lines if after != NULL_OID else ()
        return (Block(path, 0, 0, tuple(gone), tuple(come), MODULE),)
    old, new = outlines.or_empty(before), outlines.or_empty(after)
    return tuple(
        Block(
            path,
            run.old_line,
            run.new_line,
            run.removed,
            run.added,
            old.symbol_at(run.old_line) if run.removed else new.symbol_at(run.new_line),
        )
        for run in outlines.runs(before, after)
    )


def is_significant(lines: Sequence[bytes]) -> bool:
    """Enough text that finding it in a file is not chance: `else:` or `return None` is not."""
    words = [w for w in re.findall(rb"\w+", b" ".join(lines)) if w not in _COMMON]
    return sum(len(w) for w in words) >= _SIGNIFICANT


_COMMON: Final = frozenset(
    b"return None True False else if elif try except finally pass continue break self import from "
    b"and or not in is for while with as raise yield def class lambda".split()
)


def decode_line(line: bytes) -> str:
    return line.decode("utf-8", "replace")
