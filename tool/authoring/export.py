"""Worktree commits → patch files, byte for byte the same on every machine.

A commit message made by ``tool apply`` holds the patch's whole header, so editing the message
edits the header. A file is rewritten only when its content changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tool import atomic
from tool.apply import DESTINATION, TREE_TRAILER
from tool.errors import UsageError
from tool.git import Git, canonical_diff, list_changes, list_commits, read_head
from tool.project import Session, base_ref
from tool.series import Series, patchfile


@dataclass(frozen=True)
class Exported:
    """``written``: files whose content changed; ``kept``: those that were right already."""

    written: tuple[str, ...]
    kept: tuple[str, ...]


def export_patches(session: Session, folder: Path) -> Exported:
    """Write the patches of ``folder``'s branch into ``patches/``.

    Raises:
        UsageError: the worktree is dirty, a commit has no patch name, two commits share one, a
            patch is not in series.txt, or a commit edits the bundled kernels.
    """
    with session.exclusive():
        repository, series = session.git, session.series
        admin, head, branch = read_head(repository, folder)
        if dirty := list_changes(admin, folder):
            raise UsageError(
                f"has uncommitted changes, first {dirty[0]}",
                where=str(folder),
                next_step="commit them, then export again",
            )
        base = repository.resolve(base_ref(branch)) if branch else None
        if base is None:
            raise UsageError(
                "is not on a branch that tool apply made",
                where=str(folder),
                next_step="git switch to the branch that tool apply named",
            )
        files = _render(repository, series, base, head)
        return _write(series, files)


def _render(git: Git, series: Series, base: str, head: str) -> dict[str, bytes]:
    known = {p.name for p in series.patches}
    files: dict[str, bytes] = {}
    for commit in list_commits(git, base, head):
        where = f"commit {commit.oid[:12]} ({commit.summary})"
        if len(commit.parents) != 1:
            raise UsageError("is a merge", where=where, next_step="rebase it into single commits")
        header, name = patchfile.from_message(commit.message)
        diff = canonical_diff(git, commit.parents[0], commit.oid)
        if header.get(TREE_TRAILER):
            continue  # the kernels: their source is ada_dsa/, not this commit
        if name is None:
            raise UsageError(
                "has no Patch-Name trailer",
                where=where,
                next_step="squash it into the patch it belongs to (git rebase -i --autosquash), or name a "
                "new one: git commit --amend --trailer 'Patch-Name: CHANGE/NAME.patch'",
            )
        if name in files:
            raise UsageError(
                f"is a second commit of {name}", where=where, next_step="squash the two"
            )
        if name not in known:
            raise UsageError(
                f"belongs to {name}, which series.txt does not list",
                where=where,
                next_step=f"add the line '{name} ==RELEASE' to series.txt, below its change",
            )
        if DESTINATION.encode() + b"/" in diff:
            raise UsageError(
                "changes the bundled kernels",
                where=where,
                next_step="make that change in ada_dsa/ and apply again",
            )
        content = patchfile.render(header, diff)
        patchfile.parse(name, content)  # what we write, we can read
        files[name] = content
    return files


def _write(series: Series, files: dict[str, bytes]) -> Exported:
    written: list[str] = []
    kept: list[str] = []
    for name, content in files.items():
        path = next(p.path for p in series.patches if p.name == name)
        (written if atomic.write(path, content) else kept).append(name)
    return Exported(tuple(written), tuple(kept))
