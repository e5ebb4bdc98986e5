"""Where upstream put a file or a definition that is no longer where a patch wants it.

A file that went, or shrank to a stub, left its definitions somewhere: the file that appeared and
holds most of their names is what it was renamed to. A definition that went is the one of the new ones whose
body is most like it. Both are suggestions for a person, with the share they rest on; no patch is
moved because of them.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from tool.analysis import Outlines, Source
from tool.git import NULL_OID, Git, find_blobs

_DEFINITION: Final = re.compile(r"\s*(?:async\s+)?(?:def|class)\s+(\w+)")
_GREP: Final = r"^[[:space:]]*(async[[:space:]]+)?(def|class)[[:space:]]+[A-Za-z_]"
_SAME_FILE: Final = 0.5
_SAME_BODY: Final = 0.6


@dataclass(frozen=True)
class Rename:
    """``share``, 0 to 1: of the definitions (a file), or of the body (a definition), found there."""

    name: str
    blob: str
    share: float

    def __str__(self) -> str:
        return f"{self.name} ({self.share:.0%} alike)"


class RenameDetector:
    """Successors between two trees. ``old`` None: nothing is known of the older release."""

    def __init__(self, git: Git, outlines: Outlines, old: str | None, new: str) -> None:
        self._git = git
        self._outlines = outlines
        self._old = old
        self._new = new
        self._appeared: dict[str, set[str]] | None = None

    def file(self, path: str, before: str, current: str) -> Rename | None:
        """The file that now holds what ``path`` held as blob ``before``; ``current`` is what it is now."""
        names = self._names(before) - (self._names(current) if current != NULL_OID else set())
        if self._old is None:
            return None
        if not names:
            return self._renamed(path)
        shares = {p: len(names & found) / len(names) for p, found in self._candidates().items()}
        best = max(shares, key=lambda p: (shares[p], p), default=None)
        if best is None or shares[best] < _SAME_FILE:
            return None
        return Rename(best, find_blobs(self._git, self._new, [best])[best], shares[best])

    def left(self, before: str, current: str) -> bool:
        """Did most of what the file defined leave it? What is left is a stub that imports the rest."""
        names = self._names(before)
        return bool(names) and len(names - self._names(current)) > len(names) * _SAME_FILE

    def symbol(self, name: str, before: Source, after: Source) -> Rename | None:
        """The definition of ``after`` that most resembles ``name`` of ``before``."""
        body = before.body(name)
        known = {span.name for span in before.outline.spans}
        found: list[Rename] = []
        for span in after.outline.spans:
            same_name = span.name.rpartition(".")[2] == name.rpartition(".")[2]
            if span.name in known and not same_name:
                continue
            there = after.lines[span.first - 1 : span.last]
            ratio = _likeness(body, there)
            if ratio >= _SAME_BODY:
                found.append(Rename(span.name, after.blob, ratio))
        return max(found, key=lambda s: s.share, default=None)

    def _renamed(self, path: str) -> Rename | None:
        """For a file without definitions: git's own rename detection."""
        if self._git.find(f"{self._new}:{path}") is not None:
            return None  # git looks only at files that are gone
        rows = self._git.out(
            "diff-tree", "-r", "-z", "-M40%", "-l0", "--name-status", "--diff-filter=R",
            str(self._old), self._new,
        ).split("\0")  # fmt: skip
        for status, old, new in zip(rows[0::3], rows[1::3], rows[2::3], strict=False):
            if old == path:
                blob = find_blobs(self._git, self._new, [new])[new]
                return Rename(new, blob, int(status[1:]) / 100)
        return None

    def _names(self, blob: str) -> set[str]:
        spans = self._outlines.or_empty(blob).spans
        return {span.name.rpartition(".")[2] for span in spans} - {"__init__"}

    def _candidates(self) -> dict[str, set[str]]:
        """Names defined per Python file that the newer tree has and the older has not."""
        if self._appeared is None:
            appeared = self._git.out(
                "diff-tree", "-r", "-z", "--no-renames", "--name-only", "--diff-filter=A",
                str(self._old), self._new,
            ).split("\0")  # fmt: skip
            self._appeared = self._definitions(p for p in appeared if p.endswith(".py"))
        return self._appeared

    def _definitions(self, paths: Iterable[str]) -> dict[str, set[str]]:
        wanted = sorted(paths)
        found: dict[str, set[str]] = defaultdict(set)
        if not wanted:
            return found
        raw = self._git.run(
            "grep",
            "-z",
            "-I",
            "--full-name",
            "-E",
            "-e",
            _GREP,
            self._new,
            "--",
            *wanted,
            check=False,
        ).stdout.decode("utf-8", "replace")
        for row in raw.splitlines():
            where, _, line = row.partition("\0")
            if match := _DEFINITION.match(line):
                found[where.partition(":")[2]].add(match[1])
        return found


def _likeness(one: Iterable[bytes], other: Iterable[bytes]) -> float:
    """Share of equal lines, in order; the line that names the definition does not count."""
    a, b = list(one)[1:], list(other)[1:]
    if not a or not b:
        return 0.0
    # The share that equal lines would be in any order: most definitions are told apart by it.
    most = 2.0 * (Counter(a) & Counter(b)).total() / (len(a) + len(b))
    if most < _SAME_BODY:
        return 0.0
    return difflib.SequenceMatcher(None, a, b, autojunk=False).ratio()
