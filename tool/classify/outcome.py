"""What became of one patch on another release, with reasons a person can read.

=============  =====================================================================================
clean          every hunk is on its line, or every file is the blob the patch was written for
moved          the hunks read the same, context included; some are on other lines
merged         three-way: the lines around a hunk are others now
exact          upstream's own diff holds the patch, hunk for hunk, in the same symbols
squashed       upstream holds every line of it, mixed with other changes
elsewhere      upstream holds it in another place: applying it would do the same twice
partial        upstream holds a part of it
stale          it applies, but the release has more of what it replaces, or lacks a name it uses
conflict       upstream changed the same lines in another way
target gone    the file or the symbol is not there any more
=============  =====================================================================================

Only the first three carry a patch over by themselves. Exact, squashed, elsewhere and partial stop for a
person: a patch retired by mistake is a fork that silently lost a change.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from tool.analysis import Block
from tool.apply import Applied


class OutcomeKind(StrEnum):
    CLEAN = "clean"
    MOVED = "moved"
    MERGED = "merged"
    EXACT = "exact"
    SQUASHED = "squashed"
    ELSEWHERE = "elsewhere"
    PARTIAL = "partial"
    STALE = "stale"
    CONFLICT = "conflict"
    GONE = "target gone"
    RETIRED = "retired"


CARRIES: Final = frozenset({OutcomeKind.CLEAN, OutcomeKind.MOVED, OutcomeKind.MERGED})
UPSTREAM: Final = frozenset(
    {OutcomeKind.EXACT, OutcomeKind.SQUASHED, OutcomeKind.ELSEWHERE, OutcomeKind.PARTIAL}
)


@dataclass(frozen=True)
class ConflictHunk:
    """A hunk that does not carry over, and what upstream did to the same lines.

    ``renamed_to`` is where upstream put the file, where that is known.
    """

    path: str
    symbol: str
    line: int
    ours: Block
    theirs: tuple[Block, ...]
    renamed_to: str | None = None


@dataclass(frozen=True)
class Outcome:
    """``applied`` is set exactly when the patch carries over."""

    patch: str
    kind: OutcomeKind
    reasons: tuple[str, ...]
    applied: Applied | None = None
    conflicts: tuple[ConflictHunk, ...] = ()

    @property
    def carries(self) -> bool:
        return self.kind in CARRIES
