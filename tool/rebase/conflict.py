"""A worktree at the patch a rebase stopped at, for a person to resolve; and what came of it.

The worktree is the release with the patches before it. Files that merge hold the merge, files that
do not hold markers, zdiff3 where git knows it (2.35), and the index has the three sides, so that
``git status``, ``git diff`` and a merge tool work. A file that upstream moved is merged into its
renamed_to.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from tool.analysis import Outline, find_new_duplicates, parse_outline
from tool.apply import compute_intended
from tool.classify import ConflictHunk, ReplayStep
from tool.errors import ConflictError, UsageError
from tool.git import (
    NULL_OID,
    Git,
    GitFailed,
    blob_id,
    canonical_diff,
    changed_files,
    find_blobs,
    make_tempdir,
    read_head,
    require_version,
    write_worktree,
)
from tool.project import discard_worktree, point_admin, stage_worktree, staged_path
from tool.series import ROOT, find_content_faults, patchfile

_ZDIFF3: Final = (2, 35)
_BEGIN: Final = re.compile(rb"^<{7} ", re.MULTILINE)
_MARKER: Final = re.compile(rb"^(<{7}|\|{7}|>{7})( |$)", re.MULTILINE)


@dataclass(frozen=True)
class MergedFile:
    """A file of the patch as the worktree holds it; ``path`` is the new one where it was renamed."""

    path: str
    content: bytes | None
    conflicts: int
    base: str
    ours: str
    theirs: str

    @property
    def marked_lines(self) -> list[int]:
        """1-based lines at which a conflict begins."""
        content = self.content if self.conflicts else None
        found = _BEGIN.finditer(content) if content else ()
        return [(content or b"").count(b"\n", 0, match.start()) + 1 for match in found]

    def lines_beside(self, conflicts: Sequence[ConflictHunk]) -> list[int]:
        """1-based lines of a merged file where upstream changed the same lines as the patch, or those
        next to them: the merge is one that nobody has looked at."""
        if self.conflicts or self.content is None:
            return []
        lines = self.content.split(b"\n")
        found = set()
        for hunk in conflicts:
            if hunk.path == self.path and hunk.theirs:
                near, size = hunk.theirs[0].new_line, len(hunk.ours.added)
                wanted = list(hunk.ours.added)
                places = [n + 1 for n in range(len(lines)) if lines[n : n + size] == wanted]
                found.add(min(places, key=lambda n: abs(n - near)) if size and places else near)
        return sorted(max(1, line) for line in found)


def open_worktree(
    git: Git, folder: Path, step: ReplayStep, *, token: str, label: str
) -> list[MergedFile]:
    """Make the worktree ``folder``, known by ``token``; it is moved there when it is whole.

    Raises:
        UsageError: something else is there.
    """
    staged = staged_path(folder, token)
    admin = stage_worktree(git, folder, token, step.parent)
    tree = Git(admin, work_tree=staged)
    tree.run("-c", "checkout.workers=0", "reset", "--hard", "--quiet")
    merged = merge_files(git, step, label)
    for file in merged:
        _write(tree, staged, file)
    _refuse_foreign(folder)
    point_admin(admin, folder)
    staged.rename(folder)
    return merged


def read_from_disk(folder: Path, file: MergedFile) -> MergedFile:
    """``file`` with what the worktree holds by now."""
    try:
        content = (folder / file.path).read_bytes()
    except FileNotFoundError:
        return file
    return replace(file, content=content, conflicts=len(_BEGIN.findall(content)))


def is_as_merged(git: Git, step: ReplayStep, tree: str, label: str) -> bool:
    """Is ``tree`` what ``open_worktree`` made, without a conflict and without an edit?"""
    merged = merge_files(git, step, label)
    made = {m.path: NULL_OID if m.content is None else blob_id(m.content) for m in merged}
    was = {m.path: m.ours for m in merged}
    changed = {c.path: c.after for c in changed_files(git, step.parent_tree, tree)}
    return not any(m.conflicts for m in merged) and changed == {
        path: blob for path, blob in made.items() if blob != was[path]
    }


def close_worktree(git: Git, folder: Path, token: str) -> None:
    """Remove the worktree that was made under ``token``, whatever state a kill left it in.

    Raises:
        UsageError: something else is in ``folder``; it stays.
    """
    discard_worktree(git, folder, token)
    _refuse_foreign(folder)


def _refuse_foreign(folder: Path) -> None:
    if os.path.lexists(folder):
        raise UsageError(
            "is not the worktree that this rebase made, so it was left alone",
            where=str(folder),
            next_step="move it away, then run the same command again",
        )


def merge_files(git: Git, step: ReplayStep, label: str) -> list[MergedFile]:
    """Every file of the patch, merged with what the release has there."""
    parsed = patchfile.parse(step.patch.name, step.patch.content)
    moved = {t.path: t.renamed_to for t in step.outcome.conflicts if t.renamed_to}
    paths = [moved.get(f.path) or f.path for f in parsed.files]
    now = find_blobs(git, step.parent_tree, paths)
    theirs = compute_intended(git, parsed)
    return [
        _merge(git, path, file.before, now[path], theirs[file.path], label, step)
        for path, file in zip(paths, parsed.files, strict=True)
    ]


def _merge(
    git: Git, path: str, base: str, ours: str, theirs: str, label: str, step: ReplayStep
) -> MergedFile:
    if NULL_OID in (ours, theirs):
        # Nothing to merge with: the file as the patch makes it, or as the release has it.
        conflict = ours == NULL_OID and NULL_OID not in (base, theirs)
        if theirs == NULL_OID:
            blob = NULL_OID if ours == base else ours
        else:
            blob = NULL_OID if conflict else theirs
        content = git.blobs([blob])[blob] if blob != NULL_OID else None
        return MergedFile(path, content, int(conflict), base, ours, theirs)
    sides = [oid for oid in (ours, base, theirs) if oid != NULL_OID]
    found = git.blobs(sides) | {NULL_OID: b""}
    style = "--zdiff3" if require_version() >= _ZDIFF3 else "--diff3"
    names = (label, "the release it was written for", step.patch.name)
    with make_tempdir(git) as temp:
        files = [Path(temp) / name for name in ("ours", "base", "theirs")]
        for file, oid in zip(files, (ours, base, theirs), strict=True):
            file.write_bytes(found[oid])
        labels = [part for name in names for part in ("-L", name)]
        done = git.run(
            "merge-file", "-p", style, *labels, *(str(file) for file in files), check=False
        )
    if done.returncode > 127:
        raise GitFailed("git merge-file failed", why=done.stderr.decode("utf-8", "replace"))
    return MergedFile(path, done.stdout, done.returncode, base, ours, theirs)


def _write(tree: Git, folder: Path, file: MergedFile) -> None:
    target = folder / file.path
    if file.content is None:
        target.unlink(missing_ok=True)
        tree.run("update-index", "--force-remove", "--", file.path)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(file.content)
    if not file.conflicts:
        tree.run("add", "--", file.path)
        return
    sides = enumerate((file.base, file.ours, file.theirs), start=1)
    rows = "".join(f"100644 {oid} {at}\t{file.path}\n" for at, oid in sides if oid != NULL_OID)
    clear = f"0 {NULL_OID}\t{file.path}\n"
    tree.run("update-index", "--index-info", stdin=(clear + rows).encode())


def read_resolution(git: Git, folder: Path, step: ReplayStep) -> str:
    """The tree a person left in ``folder``, committed or not.

    Raises:
        ConflictError: a marker is left, a file does not parse, or nothing was changed.
        UsageError: something outside the package was changed.
    """
    admin, _, _ = read_head(git, folder)
    tree = write_worktree(admin, folder)
    changed = changed_files(git, step.parent_tree, tree)
    if not changed:
        raise ConflictError(
            f"nothing of {step.patch.name} is left in it",
            where=str(folder),
            why="the worktree is the release with the patches before this one",
            next_step="make the change there and continue, or leave the patch out: "
            "tool rebase --skip --why TEXT",
        )
    for change in changed:
        _inspect(git, folder, change.path, change.before, change.after)
    _refuse_leftovers(git, folder, step, tree)
    return tree


def _refuse_leftovers(git: Git, folder: Path, step: ReplayStep, tree: str) -> None:
    """Raises ConflictError at what an editor or a merge left beside a resolved file, or in it."""
    header = patchfile.parse(step.patch.name, step.patch.content).header
    content = patchfile.render(header, canonical_diff(git, step.parent_tree, tree))
    for fault in find_content_faults(patchfile.parse(step.patch.name, content)):
        line = f":{fault.line}" if fault.line else ""
        raise ConflictError(
            f"{fault.message}, and would go into {step.patch.name}",
            where=f"{folder / fault.path}{line}",
            next_step="take it out, then: tool rebase --continue",
        )


def _inspect(git: Git, folder: Path, path: str, before: str, blob: str) -> None:
    where = str(folder / path)
    if not path.startswith(ROOT):
        raise UsageError(
            "is outside the package",
            where=where,
            next_step=f"a patch changes files below {ROOT}; move or delete it, then continue",
        )
    if blob == NULL_OID:
        return
    content = git.blobs([blob])[blob]
    if match := _MARKER.search(content):
        line = content.count(b"\n", 0, match.start()) + 1
        raise ConflictError(
            "still has a conflict marker",
            where=f"{where}:{line}",
            next_step="resolve it, then: tool rebase --continue",
        )
    if path.endswith(".py"):
        try:
            outline = parse_outline(content)
        except SyntaxError as error:
            raise ConflictError(
                f"does not parse: {error.msg}",
                where=f"{where}:{error.lineno}",
                next_step="mend it, then: tool rebase --continue",
            ) from error
        _refuse_twice(where, outline, git.blobs([before])[before] if before != NULL_OID else None)


def _refuse_twice(where: str, outline: Outline, before: bytes | None) -> None:
    """Raises ConflictError at a definition that the release has once and the worktree twice."""
    try:
        old = parse_outline(before) if before is not None else None
    except SyntaxError:
        old = None
    for name in find_new_duplicates(old, outline):
        first, *others = [span.first for span in outline.spans if span.name == name]
        raise ConflictError(
            f"{name} is defined twice in this file, at line {first} and here",
            where=f"{where}:{others[-1]}",
            why="upstream has one of its own, and the patch adds another",
            next_step="keep what is needed, then: tool rebase --continue; or, if upstream's does it all: "
            "tool rebase --skip --why 'upstream REFERENCE'",
        )
