"""Worktrees as git keeps them: which there are, what each has checked out, and what was changed there.

Only worktrees of the tool's own repository are opened with git. A folder may claim any repository in its
``.git`` file, and that repository's configuration may name programs; so the claim is believed only when the
repository names the folder in turn.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tool.errors import UsageError
from tool.git.repository import Git
from tool.git.tempdir import make_tempdir

_GITDIR = "gitdir: "
_BRANCH = "ref: refs/heads/"


@dataclass(frozen=True)
class Worktree:
    """A worktree of the tool's own repository.

    ``folder`` is its real path, ``admin`` its administrative folder below the repository, and ``env`` that
    of the repository's git.
    """

    folder: Path
    admin: Path
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def branch(self) -> str | None:
        """The branch that is checked out; None when HEAD is detached."""
        text = read_text(self.admin / "HEAD").strip()
        return text.removeprefix(_BRANCH) if text.startswith(_BRANCH) else None

    def open(self) -> Git:
        """git on this worktree."""
        return Git(self.admin, work_tree=self.folder, env=self.env)


def find_worktree(git: Git, folder: Path) -> Worktree | None:
    """The worktree of the repository ``git`` whose files are in ``folder``; None when there is none.

    Nothing is run. ``folder/.git`` must name a folder directly below ``worktrees`` of the repository, and
    that folder's ``gitdir`` must name ``folder/.git``. Links are resolved before paths are compared.
    """
    folder = folder.resolve()
    admin = _own_admin(git, folder)
    if admin is None or _named_folder(admin) != folder:
        return None
    return Worktree(folder, admin, git.env)


def add_worktree(git: Git, folder: Path, commit: str) -> Worktree:
    """Make an empty worktree with a detached HEAD at ``commit``; ``folder`` must not exist.

    The files are those of ``git worktree add --detach --no-checkout`` (gitrepository-layout(5)). That
    command would name the tool's own common folder in the worktree.
    """
    below = admin_folders(git)
    below.mkdir(exist_ok=True)
    folder.mkdir()
    # HEAD of a worktree is also the ref worktrees/NAME/HEAD: NAME must fit in one (git-check-ref-format).
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", folder.name).strip("-") or "worktree"
    for number in itertools.count():
        admin = below / (f"{name}{number}" if number else name)
        with contextlib.suppress(FileExistsError):
            admin.mkdir()
            break
    # First the pointers: whoever removes what a kill left finds the folder by them.
    (admin / "gitdir").write_bytes(os.fsencode(f"{folder / '.git'}\n"))
    (folder / ".git").write_bytes(os.fsencode(f"{_GITDIR}{admin}\n"))
    (admin / "commondir").write_text("../..\n", encoding="utf-8")
    (admin / "HEAD").write_text(f"{commit}\n", encoding="utf-8")
    return Worktree(folder, admin, git.env)


def list_worktrees(git: Git) -> dict[str, Path]:
    """Branch → folder of every live worktree."""
    found: dict[str, Path] = {}
    for entry in sorted(admin_folders(git).glob("*/gitdir")):
        folder = Path(read_text(entry).strip()).parent
        branch = Worktree(folder, entry.parent).branch
        if branch is not None and (folder / ".git").exists():
            found[branch] = folder
    return found


def read_head(git: Git, folder: Path) -> tuple[Path, str, str | None]:
    """(administrative folder, HEAD commit, branch) of a worktree of the repository ``git``.

    Raises:
        UsageError: ``folder`` is not one.
    """
    worktree = find_worktree(git, folder)
    if worktree is None:
        raise _not_a_worktree(git, folder.resolve())
    return worktree.admin, worktree.open().out("rev-parse", "HEAD"), worktree.branch


def admin_folders(git: Git) -> Path:
    """Where the repository keeps the administrative folders of its worktrees."""
    return git.git_dir / "worktrees"


def is_admin(git: Git, admin: Path) -> bool:
    """Does ``admin`` stand directly where the repository keeps such folders? Links are resolved first."""
    return admin.resolve().parent == admin_folders(git).resolve()


def resolve_admin(git: Git, folder: Path) -> Path | None:
    """The administrative folder that ``folder/.git`` names, if it is one of the repository ``git``."""
    named = find_admin(folder)
    if named is None or not is_admin(git, named):
        return None
    admin = named.resolve()
    return admin if admin.is_dir() else None


def _own_admin(git: Git, folder: Path) -> Path | None:
    admin = resolve_admin(git, folder)
    return admin if admin and (admin / "HEAD").is_file() else None


def _named_folder(admin: Path) -> Path | None:
    """The worktree that an administrative folder belongs to."""
    back = read_text(admin / "gitdir").strip()
    return Path(back).parent.resolve() if back else None


def _not_a_worktree(git: Git, folder: Path) -> UsageError:
    admin = _own_admin(git, folder)
    place = _named_folder(admin) if admin else None
    if place is None:
        return UsageError(
            "is not a worktree of this tool",
            where=str(folder),
            next_step="make one with: tool apply",
        )
    if (place / ".git").exists():
        return UsageError(
            f"is a copy of the worktree {place}",
            where=str(folder),
            next_step="work in the original, or make another worktree with: tool apply",
        )
    return UsageError(
        f"is a worktree that was moved here from {place}",
        where=str(folder),
        next_step=f"tell git where it is now: git -C {shlex.quote(str(folder))} worktree repair",
    )


def list_changes(admin: Path, folder: Path) -> list[str]:
    """Paths that differ from HEAD, untracked ones included; empty for a clean worktree."""
    git = Git(admin, work_tree=folder)
    rows = git.out("status", "--porcelain", "-z", "--untracked-files=all", "--no-renames").split(
        "\0"
    )
    return [row[3:] for row in rows if row]


def find_admin(folder: Path) -> Path | None:
    """The administrative folder that ``folder/.git`` names, whoever wrote that; None when it names none.

    For comparisons only. To run git on a worktree, use :func:`find_worktree`.
    """
    text = read_text(folder / ".git")
    return folder / text.removeprefix(_GITDIR).strip() if text.startswith(_GITDIR) else None


def read_text(path: Path) -> str:
    """The text of a file in which git keeps a path; empty when there is no such regular file."""
    try:
        text = os.fsdecode(path.read_bytes()) if path.is_file() else ""
    except OSError:
        return ""
    return "" if "\0" in text else text


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
