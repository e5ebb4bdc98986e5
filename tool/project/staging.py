"""A worktree that is known by its token, from the first moment to its deletion.

It is made under a random name beside its final place. The name and git's administrative folder carry
the token. Only what carries the token of the command that asks is ever moved or deleted.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tool import atomic
from tool.git import Git, add_worktree, admin_folders, is_admin, read_text, resolve_admin

_TOKEN_FILE: Final = "ada-token"
_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2
_NO_EXCHANGE: Final = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM)
"""What the call says where the system, the file system or a container's filter does not offer it."""


def new_token() -> str:
    return os.urandom(16).hex()


def staged_path(folder: Path, token: str) -> Path:
    """Where what is meant for ``folder`` is made: in the same folder, on the same disk."""
    return folder.parent / f".tool-{token}"


@dataclass(frozen=True)
class Replacement:
    """What a journal says of a folder that is replaced whole, and the paths that follow from it."""

    token: str
    project: str
    folder: str

    @property
    def place(self) -> Path:
        return Path(self.folder)

    @property
    def staged(self) -> Path:
        return staged_path(self.place, self.token)

    @property
    def old(self) -> Path:
        """Where the earlier folder is when the system cannot exchange two folders."""
        return self.staged.with_name(f"{self.staged.name}.old")

    @property
    def backup(self) -> Path:
        return self.place.with_name(f"{self.place.name}.backup-{self.token[:8]}")


def stage_worktree(git: Git, folder: Path, token: str, commit: str) -> Path:
    """Make the staged worktree for ``folder``, detached and without files; returns its admin folder."""
    staged = staged_path(folder, token)
    folder.parent.mkdir(parents=True, exist_ok=True)
    admin = add_worktree(git, staged, commit).admin
    atomic.write(admin / _TOKEN_FILE, token.encode())
    return admin


def carries_token(git: Git, folder: Path, token: str) -> bool:
    """Is ``folder`` the worktree that was made under ``token``?"""
    admin = resolve_admin(git, folder)
    return admin is not None and read_text(admin / _TOKEN_FILE) == token


def point_admin(admin: Path, folder: Path) -> None:
    """Tell git that the worktree of ``admin`` lives in ``folder``."""
    atomic.write(admin / "gitdir", os.fsencode(folder / ".git") + b"\n")


def list_claimants(git: Git, folder: Path) -> list[Path]:
    """Admin folders of worktrees that git believes to live in ``folder``."""
    pointer = str(folder / ".git")
    entries = admin_folders(git).glob("*")
    return [e for e in entries if read_text(e / "gitdir").rstrip("\n") == pointer]


def discard_worktree(git: Git, folder: Path, token: str) -> None:
    """Delete the worktree made under ``token``, staged or in ``folder``, and git's entry for it."""
    staged = staged_path(folder, token)
    if carries_token(git, folder, token):
        with contextlib.suppress(FileNotFoundError):  # the current folder may be gone already
            if Path.cwd().is_relative_to(folder.resolve()):
                os.chdir(folder.parent)  # no program can be started in a folder that is gone
        folder.rename(staged)  # from now on the name says whose it is
    if staged.exists():
        shutil.rmtree(staged)
    for admin in admin_folders(git).glob(f"*tool-{token}"):
        shutil.rmtree(admin)


def remove_admin(git: Git, admin: Path) -> None:
    """Delete a worktree's entry, if it is one of ``git``'s repository and still there."""
    if is_admin(git, admin) and admin.is_dir():
        shutil.rmtree(admin)


def swap_folders(staged: Path, place: Path, old: Path) -> None:
    """Put ``staged`` in the place of ``place``; what was there is then at ``staged`` or ``old``.

    Where the system cannot exchange two folders in one call, two renames do it. Between them the place is
    empty; the journal says how to go back.
    """
    if _exchange(staged, place):
        return
    place.rename(old)
    staged.rename(place)


def _exchange(a: Path, b: Path) -> bool:
    """Exchange two folders in one system call (renameat2, Linux); False where that is not offered."""
    import ctypes  # slow to import, and needed only here

    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:  # macOS, old C libraries
        return False
    if renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NO_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(b))
