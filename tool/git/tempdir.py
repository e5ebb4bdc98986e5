"""Folders for one command's indexes and merges: below the repository, so that what a killed command
left is found. Whoever holds the data folder next removes it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from tool.git.repository import Git

if TYPE_CHECKING:
    import tempfile

PREFIX: Final = "scratch."


def make_tempdir(git: Git) -> tempfile.TemporaryDirectory[str]:
    """A folder of one's own, removed when its block ends. The data folder's lock must be held."""
    import tempfile  # slow to import, and what is known needs no index

    return tempfile.TemporaryDirectory(dir=git.git_dir, prefix=PREFIX)


def sweep_tempdirs(repository: Path) -> None:
    """Remove what killed commands left in ``repository``; the lock says that nobody uses it."""
    for pattern in (f"{PREFIX}*", f"worktrees/*/{PREFIX}*"):
        for left in repository.glob(pattern):
            import shutil

            shutil.rmtree(left, ignore_errors=True)
