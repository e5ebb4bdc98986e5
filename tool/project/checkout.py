"""Put a composed commit into a worktree, whole or not at all.

The worktree is written beside its final place and moved there by one rename (an exchange when an
earlier state is replaced). A journal, written first, says what is under way; whoever runs next
finishes or undoes
it. So a kill at any moment leaves the old state or the new one:

1. journal;  2. hidden worktree, detached, fully checked out;  3. an old worktree's HEAD is
detached at the commit it holds;  4. branch and bookkeeping refs move in one ref transaction;  5.
the hidden worktree's HEAD is attached to the branch;  6. rename;  7. the old worktree, if any, is
deleted;  8. the journal goes.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from tool import atomic
from tool.errors import EnvironmentFault, UsageError
from tool.git import (
    TIMEOUT,
    Git,
    add_worktree,
    failure,
    find_admin,
    list_changes,
    list_worktrees,
    read_head,
    read_text,
)
from tool.project.workspace import Workspace

STAGING: Final = ".tool-staging"
_TOKEN: Final = "ada-landing"
_ZERO: Final = "0" * 40
_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2


@dataclass(frozen=True)
class Checkout:
    """A folder to hold the worktree. ``admin`` and ``head`` describe what is there now, if ours."""

    folder: Path
    branch: str
    admin: Path | None
    head: str | None


@dataclass(frozen=True)
class _Journal:
    token: str
    folder: str
    staged: str
    branch: str
    branch_before: str | None
    tip_before: str | None
    base_before: str | None
    old_admin: str | None

    def refs(self) -> tuple[tuple[str, str | None], ...]:
        """The refs a landing moves, with what they were: branch, tip and base."""
        return (
            (f"refs/heads/{self.branch}", self.branch_before),
            (tip_ref(self.branch), self.tip_before),
            (base_ref(self.branch), self.base_before),
        )


def tip_ref(branch: str) -> str:
    """Remembers the commit the tool left a branch at: anything else on it is the user's work."""
    return f"refs/ada/landed/{branch}/tip"


def base_ref(branch: str) -> str:
    """Remembers the base commit under a branch."""
    return f"refs/ada/landed/{branch}/base"


def inspect_folder(git: Git, folder: Path, branch: str | None, default: str) -> Checkout:
    """Look at ``folder`` and decide on the branch.

    Raises:
        UsageError: the folder holds something that is not a clean worktree of this tool, or the
            branch is taken or carries commits of the user's.
    """
    admin = find_admin(folder)
    if admin is None:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError(
                "exists and is not a worktree of this tool",
                where=str(folder),
                next_step="choose another folder with --into",
            )
        target = Checkout(folder, branch or default, None, None)
    else:
        if git.git_dir.resolve() not in admin.resolve().parents:
            raise UsageError(
                "is a worktree of another repository",
                where=str(folder),
                next_step="choose another folder with --into",
            )
        target = _existing(git, folder, admin, branch)
    _check_branch(git, target)
    return target


def publish(git: Git, home: Workspace, target: Checkout, head: str, base: str) -> _Publication:
    """Start writing the worktree; the caller proves the result meanwhile, then calls ``finish``."""
    return _Publication(git, home, target, head, base)


def recover_checkout(git: Git, home: Workspace) -> str | None:
    """Finish or undo what a killed run left; returns a sentence about it, or None."""
    # Only the tool writes below refs/ada, and we hold its lock: what is locked there, is abandoned.
    for stale in (git.git_dir / "refs" / "ada").rglob("*.lock"):
        stale.unlink()
    path = _journal_path(home)
    try:
        journal = _Journal(**json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    _unlock(git, journal)
    folder = Path(journal.folder)
    admin = find_admin(folder)
    landed = admin is not None and read_text(admin / _TOKEN) == journal.token
    if landed:
        _discard(git, Path(journal.staged), folder)
        outcome = f"finished an interrupted apply into {folder}"
    else:
        _undo(git, journal)
        outcome = f"undid an interrupted apply into {folder}"
    path.unlink()
    return outcome


class _Publication:
    """One landing under way, as a context manager: leaving without ``finish`` undoes it."""

    def __init__(self, git: Git, home: Workspace, target: Checkout, head: str, base: str) -> None:
        self._git = git
        self._home = home
        self._target = target
        self._head = head
        self._base = base
        self._checkout: subprocess.Popen[bytes] | None = None
        self._done = False
        folder = target.folder
        self._staged = folder.parent / STAGING / folder.name
        self._journal = _Journal(
            token=os.urandom(16).hex(),
            folder=str(folder),
            staged=str(self._staged),
            branch=target.branch,
            branch_before=git.resolve(f"refs/heads/{target.branch}"),
            tip_before=git.resolve(tip_ref(target.branch)),
            base_before=git.resolve(base_ref(target.branch)),
            old_admin=str(target.admin) if target.admin else None,
        )

    def __enter__(self) -> _Publication:
        atomic.write(_journal_path(self._home), json.dumps(asdict(self._journal)).encode())
        try:
            self._staged.parent.mkdir(parents=True, exist_ok=True)
            made = add_worktree(self._git, self._staged, self._head)
            self._admin = made.admin
            worktree = made.open()
            # More workers than one: checking out 6,000 files is bound by system calls.
            self._checkout = worktree.start(
                "-c", "checkout.workers=0", "reset", "--hard", "--quiet"
            )
        except BaseException:
            self.__exit__()
            raise
        return self

    def finish(self) -> None:
        """Wait for the files, then move refs and folder.

        Raises:
            EnvironmentFault: no space left, or the checkout hung.
        """
        self._wait()
        journal, git = self._journal, self._git
        if self._target.admin is not None:
            old = Git(self._target.admin)
            old.run("update-ref", "--no-deref", "HEAD", old.out("rev-parse", "HEAD"))
        _move_refs(git, journal, self._head, self._base)
        Git(self._admin).run("symbolic-ref", "HEAD", f"refs/heads/{journal.branch}")
        atomic.write(self._admin / _TOKEN, journal.token.encode())
        atomic.write(self._admin / "gitdir", f"{self._target.folder / '.git'}\n".encode())
        self._swap()
        self._done = True
        _discard(git, self._staged, self._target.folder)
        _journal_path(self._home).unlink()

    def __exit__(self, *_: object) -> None:
        if self._done:
            return
        if self._checkout is not None and self._checkout.poll() is None:
            self._checkout.kill()
            self._checkout.wait()
        recover_checkout(self._git, self._home)

    def _wait(self) -> None:
        assert self._checkout is not None
        try:
            _, words = self._checkout.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired as err:
            raise EnvironmentFault("writing the worktree did not finish") from err
        if self._checkout.returncode != 0:
            error = failure(("reset",), self._checkout.returncode, words)
            if b"unable to write" not in words:
                raise error
            import shutil

            # git does not say why; how much room there is does.
            free = shutil.disk_usage(self._staged.parent).free
            raise EnvironmentFault(
                "the worktree could not be written",
                where=str(self._target.folder),
                why=f"{words.decode('utf-8', 'replace').splitlines()[0]}; {free // 1024} KiB of space left",
                next_step="free some space and run the same command again; nothing was changed",
            ) from error

    def _swap(self) -> None:
        folder = self._target.folder
        if self._target.admin is not None:
            _exchange(self._staged, folder)
        else:
            with contextlib.suppress(FileNotFoundError):
                folder.rmdir()  # an empty folder the user made for us
            self._staged.rename(folder)


def _existing(git: Git, folder: Path, admin: Path, branch: str | None) -> Checkout:
    _, head, current = read_head(git, folder)
    if current is None:
        raise UsageError(
            "is not on a branch", where=str(folder), next_step="choose another folder with --into"
        )
    if branch is not None and branch != current:
        raise UsageError(
            f"is on branch {current}, not {branch}",
            where=str(folder),
            next_step="choose another folder with --into",
        )
    if dirty := list_changes(admin, folder):
        raise UsageError(
            f"has {len(dirty)} uncommitted change(s), first {dirty[0]}",
            where=str(folder),
            next_step="commit them and run tool export, or choose another folder with --into",
        )
    return Checkout(folder, current, admin, head)


def _check_branch(git: Git, target: Checkout) -> None:
    branch = target.branch
    if git.run("check-ref-format", "--branch", branch, check=False).returncode != 0:
        raise UsageError(
            f"{branch!r} is not a branch name", next_step="choose another with --branch"
        )
    tip = git.resolve(f"refs/heads/{branch}")
    if tip is None:
        return
    elsewhere = list_worktrees(git).get(branch)
    if elsewhere is not None and elsewhere.resolve() != target.folder.resolve():
        raise UsageError(
            f"branch {branch} is checked out in {elsewhere}",
            next_step=f"use that worktree, or name another branch: --branch {branch}-2",
        )
    if tip != git.resolve(tip_ref(branch)):
        raise UsageError(
            f"branch {branch} has commits of your own",
            why=f"its tip {tip[:12]} is not what tool apply left there",
            next_step="save them with tool export, or name another branch with --branch",
        )


def _move_refs(git: Git, journal: _Journal, head: str, base: str) -> None:
    moves = zip(journal.refs(), (head, head, base), strict=True)
    lines = "".join(f"update {ref} {new} {old or _ZERO}\n" for (ref, old), new in moves)
    git.run("update-ref", "--stdin", stdin=lines.encode())


def _unlock(git: Git, journal: _Journal) -> None:
    """Remove the lock files that a git killed in our landing left on what it was changing."""
    (git.git_dir / "refs" / "heads" / f"{journal.branch}.lock").unlink(missing_ok=True)
    (git.git_dir / "packed-refs.lock").unlink(missing_ok=True)
    if journal.old_admin is not None:
        (Path(journal.old_admin) / "HEAD.lock").unlink(missing_ok=True)


def _undo(git: Git, journal: _Journal) -> None:
    lines = "".join(
        f"update {ref} {oid}\n" if oid else f"delete {ref}\n"
        for ref, oid in journal.refs()
        if oid or git.resolve(ref)
    )
    _discard(git, Path(journal.staged), Path(journal.folder))
    git.run("update-ref", "--stdin", stdin=lines.encode())
    if journal.old_admin is not None:
        Git(Path(journal.old_admin)).run("symbolic-ref", "HEAD", f"refs/heads/{journal.branch}")


def _discard(git: Git, staged: Path, folder: Path) -> None:
    """Delete the folder ``staged`` and every administrative folder that no worktree uses any more.

    Those are: the one ``staged`` names; those that claim to live at ``staged`` or ``folder`` without
    being named there (a worktree deleted by hand leaves one); and one that git was killed in before
    it had written where it lives.
    """
    import shutil

    admin = find_admin(staged)
    # First the one only this folder names: without the folder nothing would lead to it any more.
    if admin is not None and admin.is_dir():
        shutil.rmtree(admin)
    if staged.exists():
        shutil.rmtree(staged)
    for entry in (git.git_dir / "worktrees").glob("*"):
        text = read_text(entry / "gitdir").strip()
        if not text:
            stale = entry.name.startswith(staged.name)
        elif Path(text).parent in (staged, folder):
            used = find_admin(Path(text).parent)
            stale = used is None or used.resolve() != entry.resolve()
        else:
            stale = False
        if stale:
            shutil.rmtree(entry)
    with contextlib.suppress(OSError):
        staged.parent.rmdir()


def _journal_path(home: Workspace) -> Path:
    return home.data / "landing.json"


def _exchange(a: Path, b: Path) -> None:
    """Swap two folders in one system call (renameat2, Linux ≥ 3.15)."""
    import ctypes  # rarely needed, and slow to import

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) == 0:
        return
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS):
        raise EnvironmentFault(
            "this file system cannot exchange two folders",
            where=str(b),
            next_step="remove the old worktree with git worktree remove, then apply again",
        )
    raise OSError(code, os.strerror(code), str(b))
