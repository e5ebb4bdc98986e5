"""A worktree of ``tool apply`` that somebody edits: what was changed there, and bringing it up to date."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from packaging.version import Version

from tool.apply import DESTINATION, RELEASE_TRAILER
from tool.errors import UsageError
from tool.git import (
    NULL_OID,
    Git,
    TreeChange,
    canonical_diff,
    changed_files,
    read_head,
    write_worktree,
)
from tool.project import Session, base_ref, tip_ref
from tool.series import PatchFile, find_content_faults, parse_release, patchfile

_KINDS = {"120000": "a symlink", "160000": "a repository of its own (git would keep a submodule)"}


@dataclass(frozen=True)
class Branch:
    """The branch a worktree is on. ``tip`` is where ``tool apply`` left it, ``base`` the release."""

    folder: Path
    admin: Path
    name: str
    head: str
    tip: str
    base: str

    def list_patches(self, git: Git, until: str) -> list[str]:
        """The names of the patches that are commits between the base and ``until``, in order."""
        form = "--format=%(trailers:key=Patch-Name,valueonly)"
        return git.out("log", "--reverse", form, f"{self.base}..{until}").split()


def open_branch(session: Session, folder: Path) -> Branch:
    """Raises UsageError when ``folder`` is not a worktree of this tool on a branch that it made."""
    git = session.git
    admin, head, name = read_head(git, folder)
    tip = git.resolve(tip_ref(name)) if name else None
    base = git.resolve(base_ref(name)) if name else None
    if name is None or tip is None or base is None:
        raise UsageError(
            "is not on a branch that tool apply made",
            where=str(folder),
            next_step="git switch to the branch that tool apply named, or make a worktree with tool apply",
        )
    return Branch(folder, admin, name, head, tip, base)


def find_release_of(git: Git, branch: Branch) -> Version:
    """The release that ``tool apply`` made the branch of: its last commit names it."""
    header, _ = patchfile.from_message(git.out("log", "-1", "--format=%B", branch.tip))
    named = header.get(RELEASE_TRAILER)
    if named is None:
        raise UsageError(
            "is on a branch whose release is not known",
            where=str(branch.folder),
            next_step="make a worktree with tool apply",
        )
    return parse_release(named)


@dataclass(frozen=True)
class EditedWorktree:
    """A worktree without commits of a person's. ``tree`` is what its files are, ``diff`` what differs.

    ``on_ref``: its base is a commit of a git source, and ``release`` the one whose patches are on it.
    """

    branch: Branch
    release: Version
    tree: str
    diff: bytes
    files: Mapping[str, str]
    on_ref: bool = False

    def require_changes(self) -> None:
        if not self.diff:
            raise UsageError(
                "has no uncommitted changes",
                where=str(self.branch.folder),
                next_step="edit there first",
            )

    def move(self, git: Git, head: str) -> bool:
        """Put the worktree on ``head``, which holds what was uncommitted; True when that is done.

        No file is touched that ``head`` does not change. False when a file was edited since the
        worktree was read; then the worktree keeps what it has.
        """
        tree = Git(self.branch.admin, work_tree=self.branch.folder)
        tree.run("add", "--all", "--", ".")
        if tree.out("write-tree") != self.tree:
            return False
        if tree.run("read-tree", "-m", "-u", self.tree, head, check=False).returncode != 0:
            return False
        old = self.branch.head
        refs = (f"refs/heads/{self.branch.name}", tip_ref(self.branch.name))
        lines = "".join(f"update {ref} {head} {old}\n" for ref in refs)
        git.run("update-ref", "--stdin", stdin=lines.encode())
        return True


def read_worktree(session: Session, folder: Path) -> EditedWorktree:
    """What is uncommitted in ``folder``.

    Raises:
        UsageError: the folder is no worktree of a locked release, it has commits of a person's, or
            something was changed there that a patch may not hold.
    """
    git = session.git
    branch = open_branch(session, folder)
    if branch.head != branch.tip:
        raise UsageError(
            "has commits of your own",
            where=str(folder),
            next_step="tool export writes commits back; for this command leave the change uncommitted",
        )
    locked = (v for v, e in session.lock.releases.items() if e.base_commit == branch.base)
    release = next(locked, None)
    on_ref = release is None
    if release is None:
        release = find_release_of(git, branch)
    if release not in session.lock.releases:
        raise UsageError(
            "is not of a release in series.lock",
            where=str(folder),
            next_step="make a worktree of a supported release: tool apply --sglang-ref "
            f"v{session.series.pin}",
        )
    before = git.tree_of(branch.head)
    tree = write_worktree(branch.admin, folder)
    changes = changed_files(git, before, tree)
    for change in changes:
        _check_change(folder, change)
    files = {change.path: describe_change(change) for change in changes}
    diff = canonical_diff(git, before, tree)
    return EditedWorktree(branch, release, tree, diff, files, on_ref)


def _check_change(folder: Path, change: TreeChange) -> None:
    where = str(folder / change.path)
    if change.path.startswith(f"{DESTINATION}/"):
        raise UsageError(
            "changes the bundled kernels",
            where=where,
            next_step="make that change in ada_dsa/ and apply again",
        )
    if kind := _KINDS.get(change.new_mode):
        raise UsageError(f"is {kind}", where=where, next_step="a patch holds only files: remove it")


def describe_change(change: TreeChange) -> str:
    if change.before == NULL_OID:
        return "added"
    return "removed" if change.after == NULL_OID else "changed"


def refuse_leftovers(name: str, content: bytes) -> PatchFile:
    """Parse a patch that is about to be written.

    Raises:
        UsageError: it adds a leftover of an editor or a conflict marker, or does not parse.
    """
    parsed = patchfile.parse(name, content)
    for fault in find_content_faults(parsed):
        raise UsageError(
            f"{fault.message}, and would go into {name}",
            where=f"{fault.path}:{fault.line}" if fault.line else fault.path,
            next_step="take it out, then run the same command again",
        )
    return parsed
