"""``tool lock``: prove the series on a release anew and record the result in series.lock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from packaging.version import Version

from tool.apply import checks as proofs
from tool.apply import engine, preimages
from tool.apply.compose import lock_patches, select_patches
from tool.errors import IntegrityError
from tool.git.index import DATE, IDENTITY
from tool.git.objects import commit_id
from tool.project import checkout as landing
from tool.project.workspace import Workspace
from tool.series import lockfile as locks
from tool.series import patchfile
from tool.series.lockfile import Lock, LockedPatch, LockedRelease
from tool.series.model import Patch, Series
from tool.upstream import resolve as upstream
from tool.upstream.resolve import resolve_release


def update_lock(
    series: Series, home: Workspace, release: Version, *, offline: bool, quiet: bool
) -> bool:
    """Apply, prove and record; True when series.lock changed.

    A release the lock knows keeps its wheels and base, so only a new release trusts the index.

    Raises:
        ToolError: whatever applying or proving raises; the lock is then as before.
    """
    patches = select_patches(series, release)
    lock = locks.load(series.lock_path)
    with home.exclusive():
        git = home.open_repository()
        landing.recover_checkout(git, home)
        request = upstream.Request(f"v{release}", offline=offline, quiet=quiet)
        found = resolve_release(git, home, series, lock, request, whole=True)
        base, wheels = found.base, found.wheels
        preimages.ensure_preimages(git, home, series, lock, patches, request, release=release)
        applied = engine.apply_series(git, base, patches)
        proofs.check_applied(git, applied)
        entry = LockedRelease(release, wheels, base.commit, base.tree, lock_patches(applied))
        pruned = Lock({v: r for v, r in lock.releases.items() if series.for_release(v)})
        return locks.save(series.lock_path, pruned.with_release(entry))


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
