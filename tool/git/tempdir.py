"""Folders for one command's indexes and merges. They lie below the repository, so that whoever holds the
data folder next finds and removes what a killed command left."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Final

from tool.git.isolation import FOLDER
from tool.git.repository import Git

PREFIX: Final = "scratch."


def make_tempdir(git: Git) -> tempfile.TemporaryDirectory[str]:
    """A folder of one's own, removed when its block ends. The data folder's lock must be held."""
    return tempfile.TemporaryDirectory(dir=git.git_dir, prefix=PREFIX)


def sweep_tempdirs(repository: Path) -> None:
    """Remove what killed commands left in ``repository``; the lock says that nobody uses it."""
    for pattern in (f"{PREFIX}*", f"worktrees/*/{PREFIX}*", f".{FOLDER}.*"):
        for left in repository.glob(pattern):
            shutil.rmtree(left, ignore_errors=True)
