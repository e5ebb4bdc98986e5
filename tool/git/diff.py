"""Diffs in fixed forms, whatever git and whichever configuration makes them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tool.git.repository import Git

DIFF_FLAGS: Final = (
    "--full-index",  # whole blob ids: the three-way merge finds its pre-image by them
    "--no-renames",  # a rename would hide which file a patch needs
    "--diff-algorithm=histogram",  # the default may change; this one keeps function bodies together
    "-U3",
    "--src-prefix=a/",
    "--dst-prefix=b/",
    "--no-color",
    "--no-ext-diff",  # no program of the user's
    "--no-textconv",
    "--indent-heuristic",  # a hunk begins with the statement it adds, not in the middle of one
    "--submodule=short",
    "--ignore-submodules=all",
    "--text",  # never "Binary files differ"
)
_HUNK: Final = re.compile(rb"@@ -(\d+)(?:,\d+)? \+(\d+)(?:,\d+)? @@")


@dataclass(frozen=True)
class Run:
    """A run of changed lines without context.

    ``old_line`` and ``new_line`` are 1-based. Where a side has no lines, it is the line before the gap.
    """

    old_line: int
    new_line: int
    removed: tuple[bytes, ...]
    added: tuple[bytes, ...]


@dataclass(frozen=True)
class TreeChange:
    """One file that differs between two trees: modes as git writes them, blob ids before and after."""

    path: str
    old_mode: str
    new_mode: str
    before: str
    after: str


def canonical_diff(git: Git, before: str, after: str) -> bytes:
    """The diff between two commits or trees in the one form that patch files have."""
    return git.compare_trees(git.tree_of(before), git.tree_of(after), "-p", *DIFF_FLAGS)


def changed_runs(git: Git, before: str, after: str) -> Iterator[Run]:
    """The runs of lines that turn blob ``before`` into blob ``after``, in order."""
    # A process that stays compares trees, not blobs.
    raw = git.compare_trees(
        git.make_tree("file", before), git.make_tree("file", after), "-p", "-U0", "--no-renames",
        "--diff-algorithm=histogram", "--no-indent-heuristic", "--no-color", "--no-ext-diff",
        "--no-textconv", "--text",
    )  # fmt: skip
    lines = raw.split(b"\n")
    at = 0
    while at < len(lines):
        match = _HUNK.match(lines[at])
        at += 1
        if not match:
            continue
        sides: dict[bytes, list[bytes]] = {b"-": [], b"+": []}
        while at < len(lines) and lines[at][:1] in (b"-", b"+", b"\\"):
            if lines[at][:1] != b"\\":  # "\ No newline at end of file"
                sides[lines[at][:1]].append(lines[at][1:])
            at += 1
        yield Run(int(match[1]), int(match[2]), tuple(sides[b"-"]), tuple(sides[b"+"]))


def changed_files(git: Git, before: str, after: str) -> tuple[TreeChange, ...]:
    """The files that differ between two trees, by path; a rename is a removal and an addition."""
    raw = git.compare_trees(
        git.tree_of(before), git.tree_of(after), "--raw", "-z", "--no-renames", "--full-index"
    )
    words = raw.decode("utf-8", "surrogateescape").split("\0")
    found = []
    for meta, path in zip(words[0:-1:2], words[1::2], strict=True):
        old_mode, new_mode, old, new, _ = meta.lstrip(":").split()
        found.append(TreeChange(path, old_mode, new_mode, old, new))
    return tuple(found)
