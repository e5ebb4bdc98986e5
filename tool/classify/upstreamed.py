"""Does a release hold a change already, and is it in the symbol the change was written for?

Lines count as present only where there are more of them than in the pre-image, byte for byte, and
only when there is enough of them that it cannot be chance.
"""

from __future__ import annotations

from dataclasses import dataclass

from tool.analysis import (
    Block,
    Outlines,
    Source,
    changed_blocks,
    decode_line,
    is_significant,
)
from tool.git import NULL_OID, Git


@dataclass(frozen=True)
class FileVersions:
    """One file a patch changes: what its author had and made, and what is there now."""

    path: str
    before: str
    result: str
    current: str
    intended: tuple[Block, ...]


class UpstreamDetector:
    def __init__(self, git: Git, outlines: Outlines) -> None:
        self._git = git
        self._outlines = outlines
        self._sources: dict[str, Source] = {}
        self._changes: dict[tuple[str, str, str], tuple[Block, ...]] = {}

    def source(self, blob: str) -> Source:
        """The file ``blob``, read once."""
        if blob not in self._sources:
            self._sources[blob] = Source(self._git, self._outlines, blob)
        return self._sources[blob]

    def changes(self, aim: FileVersions) -> tuple[Block, ...]:
        """What upstream changed in the file since the author had it, computed once."""
        key = (aim.path, aim.before, aim.current)
        if key not in self._changes:
            self._changes[key] = changed_blocks(self._git, *key, self._outlines)
        return self._changes[key]

    def holds(self, aim: FileVersions, block: Block) -> bool:
        """Does the release hold this change in its symbol, where the pre-image did not?"""
        if any(block.same_change(other) for other in self.changes(aim)):
            return True
        old, new = self.source(aim.before), self.source(aim.current)
        if block.added:
            more = new.count(block.added, block.symbol) > old.count(block.added, block.symbol)
            if not more or not is_significant(block.added):
                return False
        elif not new.has(block.symbol) or not is_significant(block.removed):
            return False
        if not block.removed:
            return True
        fewer = new.count(block.removed, block.symbol) < old.count(block.removed, block.symbol)
        if block.added or not fewer:
            return fewer
        # Nothing was added: only that its neighbours now meet says it was this removal.
        after = block.old_line - 1 + len(block.removed)
        before = block.old_line - 2
        around = (*old.lines[before : before + 1], *old.lines[after : after + 1])
        return len(around) == 2 and new.count(around, block.symbol) > old.count(
            around, block.symbol
        )

    def elsewhere(self, aim: FileVersions, block: Block) -> str | None:
        """Evidence that the release has ``block``'s new lines in another symbol of the same file."""
        if not is_significant(block.added) or aim.current == NULL_OID:
            return None
        old, new = self.source(aim.before), self.source(aim.current)
        places = [
            (at, symbol)
            for at in new.find(block.added)
            if (symbol := new.outline.symbol_at(at)) != block.symbol
        ]
        others = sum(old.outline.symbol_at(at) != block.symbol for at in old.find(block.added))
        if len(places) <= others:
            return None
        line, symbol = places[0]
        place = f"{aim.path}, {symbol} (line {line} of the release)"
        return f"{place}: the release has there: {summarize(block)}"


def summarize(block: Block) -> str:
    """The change in a line: its first words, and how much there is of it."""
    first = next((line for line in (*block.added, *block.removed) if line.strip()), b"")
    sign = "+" if first in block.added else "-"
    size = f"+{len(block.added)}/-{len(block.removed)}"
    return f"{sign}{decode_line(first).strip()[:80]} ({size} lines)"
