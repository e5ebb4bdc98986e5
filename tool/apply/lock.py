"""``tool lock``: prove the series on a release anew and record the result in series.lock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from packaging.version import Version

from tool.apply.checks import check_applied
from tool.apply.compose import lock_patches, select_patches
from tool.apply.engine import apply_series
from tool.apply.preimages import ensure_preimages, find_orphans, list_known_preimages
from tool.errors import ConflictError, IntegrityError
from tool.git import DATE, IDENTITY, commit_id
from tool.project import Session
from tool.series import Lock, LockedPatch, LockedRelease, Patch, Series, patchfile
from tool.upstream import Request, resolve_release


def update_lock(session: Session, *releases: Version) -> tuple[Version, ...]:
    """Apply, check and record ``releases`` together; returns those whose entry changed.

    A release the lock knows keeps its wheels and base, so only a new release trusts the index.

    Raises:
        ConflictError: a patch was written on a blob that no release would give: it would apply only
            where a repository happens to have that blob.
        ToolError: whatever applying or checking raises; the lock is then as before.
    """
    with session.exclusive():
        series, git, old = session.series, session.git, session.lock
        lock = Lock({v: r for v, r in old.releases.items() if series.for_release(v)})
        locked: dict[str, Patch] = {}
        for release in releases:
            patches = select_patches(series, release)
            found = resolve_release(session, Request(f"v{release}"), whole=True)
            ensure_preimages(session, patches, release)
            applied = apply_series(git, found.base, patches)
            check_applied(git, applied)
            lock = lock.with_release(
                LockedRelease(
                    release, found.wheels, found.base.commit, found.base.tree, lock_patches(applied)
                )
            )
            locked |= {patch.name: patch for patch in patches}
        # A release that is yet to be locked with the patch may give what it was written on.
        settled = [p for p in locked.values() if _is_locked_everywhere(p, lock)]
        for patch, oid in find_orphans(settled, list_known_preimages(lock)):
            raise ConflictError(
                f"was written on {oid[:12]}, which no release of series.lock would give",
                where=f"patches/{patch.name}",
                why="it applies only in a repository that happens to have that blob",
                next_step=f"make a worktree and write it anew: tool refresh {patch.name} WORKTREE",
            )
        session.save_lock(lock)
        return tuple(v for v in releases if old.releases.get(v) != lock.releases[v])


def _is_locked_everywhere(patch: Patch, lock: Lock) -> bool:
    """Does every release of the lock that ``patch`` applies to hold it as it is?"""
    return all(
        any((p.name, p.sha256) == (patch.name, patch.sha256) for p in entry.patches)
        for version, entry in lock.releases.items()
        if patch.applies_to(version)
    )


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
        patch = replace(patch, content_override=contents.get(patch.name, patch.content))
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
