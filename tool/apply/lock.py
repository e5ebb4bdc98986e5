"""``tool lock``: prove the series on a release anew and record the result in series.lock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from packaging.version import Version

from tool.apply.checks import check_applied
from tool.apply.compose import lock_patches, select_patches
from tool.apply.engine import apply_series
from tool.apply.preimages import ensure_preimages
from tool.errors import IntegrityError
from tool.git import DATE, IDENTITY, commit_id
from tool.project import Session
from tool.series import Lock, LockedPatch, LockedRelease, Patch, Series, patchfile
from tool.upstream import Request, resolve_release


def update_lock(session: Session, release: Version) -> bool:
    """Apply, check and record; True when series.lock changed.

    A release the lock knows keeps its wheels and base, so only a new release trusts the index.

    Raises:
        ToolError: whatever applying or checking raises; the lock is then as before.
    """
    with session.exclusive():
        series, git = session.series, session.git
        patches = select_patches(series, release)
        found = resolve_release(session, Request(f"v{release}"), whole=True)
        ensure_preimages(session, patches, release)
        applied = apply_series(git, found.base, patches)
        check_applied(git, applied)
        entry = LockedRelease(
            release, found.wheels, found.base.commit, found.base.tree, lock_patches(applied)
        )
        kept = {v: r for v, r in session.lock.releases.items() if series.for_release(v)}
        return session.save_lock(Lock(kept).with_release(entry))


def recompute_commits(lock: Lock, old: Series, contents: Mapping[str, bytes]) -> Lock:
    """The lock with the patches named in ``contents`` holding that content: the same diffs, new headers.

    Raises:
        IntegrityError: the lock is not that of ``old``, so nothing may be concluded from it.
    """
    for release in lock.releases.values():
        if any(p.name in contents for p in release.patches):
            lock = lock.with_release(_release(release, old, contents))
    return lock


def _release(release: LockedRelease, old: Series, contents: Mapping[str, bytes]) -> LockedRelease:
    files = {p.name: p for p in old.patches}
    before = after = release.base_commit
    patches: list[LockedPatch] = []
    for locked in release.patches:
        patch = files.get(locked.name)
        if patch is None or patch.sha256 != locked.sha256:
            raise _mismatch(release, locked)
        before = _commit(patch, locked.tree, before)
        if before != locked.commit:
            raise _mismatch(release, locked)
        patch = replace(patch, given=contents.get(patch.name, patch.content))
        after = _commit(patch, locked.tree, after)
        patches.append(replace(locked, sha256=patch.sha256, commit=after))
    return replace(release, patches=tuple(patches))


def _commit(patch: Patch, tree: str, parent: str) -> str:
    header = patchfile.parse(patch.name, patch.content).header
    message = patchfile.message(header, patch.name, patch.sha256)
    return commit_id(tree, parent, IDENTITY, DATE, message)


def _mismatch(release: LockedRelease, locked: LockedPatch) -> IntegrityError:
    return IntegrityError(
        f"series.lock does not match the series on v{release.version}",
        where=f"patches/{locked.name}",
        why="the patch file, or the commit recorded for it, is another one",
        next_step=f"see what differs: tool check --refs v{release.version}",
    )
