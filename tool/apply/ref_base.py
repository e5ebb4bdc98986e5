"""A git ref on top of a released wheel: what its own commits change, as a base for the series.

A wheel has what git has not: native modules, generated files, metadata. So the fork of a git ref is built
from the released wheel, the changes of the ref since that release, and the series. They are described as a
release of the lock is, in memory only: building and verifying are then the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from packaging.version import Version

from tool.apply.checks import check_applied
from tool.apply.compose import (
    Composition,
    check_patch_files,
    compose_series,
    lock_patches,
    select_patches,
)
from tool.apply.engine import apply_series
from tool.apply.preimages import ensure_preimages
from tool.errors import IntegrityError, UsageError
from tool.git import (
    COMMIT_ENV,
    EXECUTABLE,
    FILE,
    NULL_OID,
    Git,
    TreeChange,
    changed_files,
    commit_tree,
    find_blobs,
    private_index,
)
from tool.project import Session
from tool.series import FileChange, LockedRelease
from tool.upstream import (
    PACKAGE,
    PREFIX,
    Base,
    Basis,
    Request,
    find_release_tag,
    is_imported,
    resolve_base,
)

_MODES = {"000000", FILE, EXECUTABLE}


@dataclass(frozen=True)
class RefBuild:
    """The series on a git ref, in the form of the released wheel. ``left_out`` are files of the ref's commits
    that no wheel of sglang holds; ``tagged``: the release's tag is in the ref's history."""

    composed: Composition
    entry: LockedRelease
    left_out: tuple[str, ...]
    tagged: bool


def compose_ref(session: Session, request: Request) -> RefBuild:
    """The series on the git ref ``request``, checked on its own tree and then moved onto the released wheel.

    Raises:
        ConflictError, UpstreamedError: a patch does not apply, or a check failed.
        IntegrityError: the wheel's files are not those that the ref's commits began with.
    """
    composed = compose_series(session, request)
    check_applied(session.git, composed.applied)
    return project_ref(session, composed)


def compose_commit(session: Session, release: Version, commit: str, label: str) -> Composition:
    """The patches of ``release`` on ``commit``, which is in the repository and is based on that release.

    Raises:
        ConflictError, UpstreamedError: a patch does not apply.
        IntegrityError: the patch files are not the locked ones.
    """
    git = session.git
    patches = select_patches(session.series, release)
    check_patch_files(patches, session.lock.get(release))
    ensure_preimages(session, patches, release)
    basis = Basis(release, "tool apply or tool build took it for that")
    base = Base(release, commit, git.tree_of(commit), "git", label, basis)
    return Composition(base, apply_series(git, base, patches), locked=False)


def project_ref(session: Session, composed: Composition) -> RefBuild:
    """``composed``, the series on a git ref, on top of the released wheel instead of the ref's tree."""
    git, base = session.git, composed.base
    locked = session.lock.get(base.release)
    wheel = resolve_base(session, Request(f"v{base.release}"))
    tag = find_release_tag(git, base.commit, base.release)
    changes = changed_files(git, tag or wheel.commit, base.commit)
    own, left_out = _select_own(git, wheel, changes, tagged=tag is not None)
    tree = _add(git, wheel.tree, own)
    message = f"sglang {base.release} with the commits of {base.commit}\n"
    commit = commit_tree(replace(git, env={**git.env, **COMMIT_ENV}), tree, wheel.commit, message)
    on_wheel = replace(base, commit=commit, tree=tree)
    patches = select_patches(session.series, base.release)
    applied = apply_series(git, on_wheel, patches)
    for here, there in zip(applied, composed.applied, strict=True):
        if here.files != there.files:
            raise IntegrityError(
                "gives other files on the released wheel than on the git ref",
                where=f"patches/{here.name}",
                next_step=f"see what the ref changes beside: git diff v{base.release} {base.commit}",
            )
    check_applied(git, applied)
    entry = LockedRelease(
        base.release,
        locked.wheels,
        commit,
        tree,
        lock_patches(applied),
        commit=base.commit,
        own=tuple(own_change for own_change, _ in own),
    )
    return RefBuild(
        Composition(on_wheel, applied, composed.locked), entry, left_out, tag is not None
    )


def _select_own(
    git: Git, wheel: Base, changes: Sequence[TreeChange], *, tagged: bool
) -> tuple[list[tuple[FileChange, str]], tuple[str, ...]]:
    """The ref's changes to files of the wheel, each with its mode, and the paths that no wheel holds.

    Without a tag, ``changes`` are those from the wheel to the ref. What the ref has not is then kept: it may
    be a file that is made when a wheel is.
    """
    inside = [
        c for c in changes if is_imported(c.path.removeprefix(PREFIX)) and _is_package(c.path)
    ]
    left_out = [c.path for c in changes if c not in inside] if tagged else []
    held = find_blobs(git, wheel.tree, [c.path for c in inside])
    own: list[tuple[FileChange, str]] = []
    for change in inside:
        if {change.old_mode, change.new_mode} - _MODES:
            raise UsageError(
                "is a link or a submodule in the git ref, which a wheel cannot hold",
                where=change.path,
            )
        there = held[change.path]
        if there == change.after:
            continue
        if there == NULL_OID and change.before != NULL_OID:
            left_out.append(change.path)  # the release does not ship it
        elif there != change.before:
            raise IntegrityError(
                "the released wheel has another file than the release's tag",
                where=change.path,
                why=f"the tag has {change.before[:12]}, the wheel {there[:12]}",
                next_step="see that the tag is upstream's: git ls-remote --tags of sglang's repository",
            )
        elif tagged or change.after != NULL_OID:
            mode = change.new_mode if change.after != NULL_OID else "0"
            own.append((FileChange(change.path, change.before, change.after), mode))
    return own, tuple(left_out)


def _is_package(path: str) -> bool:
    return path.startswith(PREFIX + PACKAGE)


def _add(git: Git, tree: str, own: Sequence[tuple[FileChange, str]]) -> str:
    with private_index(git, tree) as index:
        rows = "".join(f"{mode} {change.after}\t{change.path}\0" for change, mode in own)
        index.run("update-index", "-z", "--add", "--index-info", stdin=rows.encode())
        return index.out("write-tree")
