"""Apply a series to a base commit: one commit per patch, no worktree.

Every patch goes through ``git apply --cached --3way`` into a private index, then ``write-tree``
and ``commit-tree`` with fixed identity and date, so the same base and patches give the same commit
ids on every machine. Plain ``git am``/``git apply`` try line offsets first and have been seen to
put a hunk into the wrong one of two similar classes; the three-way merge starts from the blob the
patch was written for.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tool.errors import ConflictError, EnvironmentFault, IntegrityError, UpstreamedError
from tool.git import (
    NULL_OID,
    Git,
    changed_files,
    commit_tree,
    find_blobs,
    missing_object,
    private_index,
)
from tool.series import FileChange, Patch, PatchFile, patchfile
from tool.upstream import Base

EMPTY_MERGE: Final = "merging it changes nothing"
"""The stronger reasons of the two: the merge is anchored in the pre-image, reverse-apply searches."""
_FILE_MODES: Final = {"000000", "100644", "100755"}


@dataclass(frozen=True)
class Applied:
    """One patch on top of ``parent_tree``. ``exact``: every file was the blob the patch was written for."""

    name: str
    sha256: str
    parent_tree: str
    tree: str
    commit: str
    files: tuple[FileChange, ...]
    exact: bool
    patch: PatchFile


def apply_series(git: Git, base: Base, patches: Sequence[Patch]) -> tuple[Applied, ...]:
    """Apply ``patches`` in order.

    Raises:
        ConflictError: a patch does not merge; names the patch and the files.
        UpstreamedError: a patch changes nothing, because upstream already has it.
        IntegrityError: a result git should never produce (a mode or symlink appeared).
        EnvironmentFault: a blob the three-way merge needs is missing.
    """
    done: list[Applied] = []
    with private_index(git, base.tree) as index:
        commit, tree = base.commit, base.tree
        for patch in patches:
            applied = apply_patch(index, patch, commit, tree)
            commit, tree = applied.commit, applied.tree
            done.append(applied)
    return tuple(done)


def apply_patch(index: Git, patch: Patch, parent: str, parent_tree: str) -> Applied:
    """Apply ``patch`` to ``index``, which holds ``parent_tree`` (and does again after an error).

    Raises:
        ToolError: as ``apply_series``.
    """
    parsed = patchfile.parse(patch.name, patch.content)
    blobs = find_blobs(index, parent_tree, [f.path for f in parsed.files])
    exact = all(blobs[f.path] == f.before for f in parsed.files)
    if not exact:
        _need_preimages(index, patch, parsed, blobs)
    done = merge_diff(index, parsed.diff)
    if done.returncode != 0:
        raise _conflict(index, patch, parsed, parent_tree, done.stderr.decode("utf-8", "replace"))
    tree = index.out("write-tree")
    if tree == parent_tree:
        raise already_upstream(patch, EMPTY_MERGE)
    files = _changes(index, parent_tree, tree, patch)
    message = patchfile.message(parsed.header, patch.name, patch.sha256)
    commit = commit_tree(index, tree, parent, message)
    return Applied(patch.name, patch.sha256, parent_tree, tree, commit, files, exact, parsed)


def merge_diff(index: Git, diff: bytes) -> subprocess.CompletedProcess[bytes]:
    """Merge ``diff`` into ``index`` from the blobs it was made on; the caller reads how that went."""
    args = ("apply", "--cached", "--3way", "--whitespace=nowarn", "-p1", "-")
    return index.run(*args, stdin=diff, check=False)


def _need_preimages(git: Git, patch: Patch, parsed: PatchFile, blobs: dict[str, str]) -> None:
    """A three-way merge without its pre-image silently becomes an offset search: refuse instead."""
    wanted = [f.before for f in parsed.files if f.before != NULL_OID and blobs[f.path] != f.before]
    for oid, there in git.has_objects(wanted).items():
        if not there:
            fault = missing_object(oid, patch.name)
            raise EnvironmentFault(
                f"{fault.message}: it is what the patch was written for",
                where=fault.where,
                why=fault.why,
                next_step=fault.next_step,
            )


def _changes(git: Git, before: str, after: str, patch: Patch) -> tuple[FileChange, ...]:
    files = []
    for change in changed_files(git, before, after):
        modes = {change.old_mode, change.new_mode}
        kept = len(modes) == 1 or "000000" in modes
        if not kept or modes - _FILE_MODES:
            raise IntegrityError(
                f"{change.path}: mode {change.old_mode} became {change.new_mode}",
                where=f"patches/{patch.name}",
                why="a patch of this series changes text, not modes or links",
            )
        files.append(FileChange(change.path, change.before, change.after))
    return tuple(files)


def _conflict(
    index: Git, patch: Patch, parsed: PatchFile, parent_tree: str, words: str
) -> ConflictError | UpstreamedError:
    unmerged = index.out("diff", "--name-only", "--diff-filter=U", "-z", "--cached").strip("\0")
    index.run("read-tree", parent_tree)
    reverse = index.run(
        "apply", "--cached", "--check", "--reverse", "--whitespace=nowarn", "-p1", "-",
        stdin=parsed.diff, check=False,
    )  # fmt: skip
    if reverse.returncode == 0:
        return already_upstream(patch, "it applies in reverse: every line is already there")
    errors = [line for line in words.splitlines() if line.startswith("error:")]
    files = unmerged.split("\0") if unmerged else [f.path for f in parsed.files]
    return ConflictError(
        f"does not apply: {', '.join(files)}",
        where=f"patches/{patch.name}",
        why="; ".join(e.removeprefix("error: ") for e in errors)
        or "upstream changed the same lines",
        next_step="mend the patch for this release, or take the release out of its specifier; "
        "nothing was changed",
    )


def already_upstream(patch: Patch, reasons: str) -> UpstreamedError:
    return UpstreamedError(
        "upstream already has this change",
        where=f"patches/{patch.name}",
        why=reasons,
        next_step=f"give it an upper bound in series.txt (line {patch.line}) and note the release in "
        "its Applied-Upstream field",
    )
