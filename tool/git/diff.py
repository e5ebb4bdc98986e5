"""The two forms in which this tool reads a diff, whatever git and configuration made it."""

from __future__ import annotations

import re
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


def canonical_diff(git: Git, before: str, after: str) -> bytes:
    """The diff between two commits or trees in the one form patch files have."""
    return git.run("diff-tree", "-r", "-p", *DIFF_FLAGS, before, after).stdout


CONTEXT_FREE_HUNK: Final = re.compile(rb"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")
"""A hunk's heading in ``changed_runs``: old start and length, new start and length."""


def changed_runs(git: Git, before: str, after: str) -> bytes:
    """The diff between two blobs without context: what the proofs and verdicts compare."""
    return git.run(
        "diff", "-U0", "--diff-algorithm=histogram", "--no-indent-heuristic", "--no-color",
        "--no-ext-diff", "--no-textconv", "--text", before, after,
    ).stdout  # fmt: skip
