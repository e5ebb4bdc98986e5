"""A private index on a repository, and commits with a fixed identity and date."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from tool.git.objects import FILE, NULL_OID
from tool.git.repository import Git
from tool.git.tempdir import make_tempdir

IDENTITY: Final = "ada-dsa series <series@ada-dsa.invalid>"


DATE: Final = "946684800 +0000"
"""2000-01-01T00:00:00Z. Any constant does; a real date would make the commit depend on the day."""


_NAME, _, _EMAIL = IDENTITY.rstrip(">").partition(" <")


COMMIT_ENV: Final = {
    "GIT_AUTHOR_NAME": _NAME,
    "GIT_AUTHOR_EMAIL": _EMAIL,
    "GIT_AUTHOR_DATE": DATE,
    "GIT_COMMITTER_NAME": _NAME,
    "GIT_COMMITTER_EMAIL": _EMAIL,
    "GIT_COMMITTER_DATE": DATE,
}


@contextlib.contextmanager
def private_index(git: Git, tree: str | None) -> Iterator[Git]:
    """``git`` with an index of its own that holds ``tree``, or nothing; commits made with it have the fixed
    identity."""
    with make_tempdir(git) as folder:
        place = Path(folder)
        # A folder of its own to run in: what git may check out there is thrown away with it.
        (place / "cwd").mkdir()
        environment = {**git.env, **COMMIT_ENV}
        index = replace(git, index_file=place / "index", cwd=place / "cwd", env=environment)
        if tree is not None:
            index.run("read-tree", tree)
        yield index


def add_blobs(index: Git, blobs: Mapping[str, str]) -> None:
    """Put regular files into an index: path → blob id."""
    rows = "".join(f"{FILE} {blob}\t{path}\0" for path, blob in blobs.items())
    index.run("update-index", "-z", "--add", "--index-info", stdin=rows.encode())


def commit_tree(git: Git, tree: str, parent: str, message: str) -> str:
    """A commit with the fixed identity and date; ``git.env`` must hold COMMIT_ENV."""
    return git.out("commit-tree", tree, "-p", parent, stdin=message.encode())


def find_blobs(git: Git, tree: str, paths: Sequence[str]) -> dict[str, str]:
    """Blob id per path in ``tree``; NULL_OID for a path that is not there."""
    return {path: git.find(f"{tree}:{path}") or NULL_OID for path in paths}
