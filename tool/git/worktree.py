"""Worktrees as git keeps them: which there are, what each has checked out, and what was changed there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tool.errors import UsageError
from tool.git.repository import Git
from tool.git.tempdir import make_tempdir


def list_worktrees(git: Git) -> dict[str, Path]:
    """Branch → folder of every live worktree."""
    found: dict[str, Path] = {}
    folder: Path | None = None
    for line in git.out("worktree", "list", "--porcelain").splitlines():
        key, _, value = line.partition(" ")
        if key == "worktree":
            folder = Path(value)
        elif key == "branch" and folder is not None and folder.exists():
            found[value.removeprefix("refs/heads/")] = folder
    return found


def read_head(folder: Path) -> tuple[Path, str, str | None]:
    """(administrative folder, HEAD commit, branch) of a worktree of this tool.

    Raises:
        UsageError: ``folder`` is not one.
    """
    admin = find_admin(folder)
    if admin is None or not admin.is_dir():
        raise UsageError(
            "is not a worktree of this tool",
            where=str(folder),
            next_step="make one with: tool apply",
        )
    git = Git(admin)
    name = (
        git.run("symbolic-ref", "--quiet", "--short", "HEAD", check=False).stdout.decode().strip()
    )
    return admin, git.out("rev-parse", "HEAD"), name or None


def list_changes(admin: Path, folder: Path) -> list[str]:
    """Paths that differ from HEAD, untracked ones included; empty for a clean worktree."""
    git = Git(admin, work_tree=folder)
    rows = git.out("status", "--porcelain", "-z", "--untracked-files=all", "--no-renames").split(
        "\0"
    )
    return [row[3:] for row in rows if row]


def find_admin(folder: Path) -> Path | None:
    """The administrative folder a linked worktree's ``.git`` file names."""
    text = read_text(folder / ".git")
    return Path(text.removeprefix("gitdir: ").strip()) if text.startswith("gitdir: ") else None


def read_text(path: Path) -> str:
    """The text of a file in which git keeps a path; empty when there is no such file."""
    try:
        return os.fsdecode(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return ""


def write_worktree(admin: Path, folder: Path) -> str:
    """The tree of everything in a worktree, committed or not; its index stays as it is."""
    with make_tempdir(Git(admin)) as temp:
        index = Path(temp) / "index"
        # A copy of the worktree's own index: it knows which files are as they were. Its time goes
        # along: git reads a file again that is as young as the index (Documentation/technical/
        # racy-git.txt), and a copy made now would look younger than any edit.
        shutil.copy2(admin / "index", index)
        mine = Git(admin, work_tree=folder, index_file=index)
        mine.run("add", "--all", "--", ".")
        return mine.out("write-tree")
