"""Follow a patch's new header through series.lock.

A header is part of the commit message, so widening a patch's range changes the commits of every
release it applies to, though no tree. Commit ids follow from tree, parent and message, so they are
computed; nothing has to be applied.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tool.errors import IntegrityError
from tool.git.objects import commit_id
from tool.series import patchfile
from tool.series.lockfile import Lock, LockedPatch, LockedRelease
from tool.series.model import Patch, Series
from tool.upstream.wheel_import import DATE, IDENTITY


def relabel(lock: Lock, old: Series, contents: Mapping[str, bytes]) -> Lock:
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
