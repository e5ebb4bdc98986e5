"""``tool lock``: prove the series on a release anew and record the result in series.lock."""

from __future__ import annotations

from packaging.version import Version

from tool.apply import checks as proofs
from tool.apply import engine, preimages
from tool.apply.compose import locked_patches, patches_for
from tool.project import checkout as landing
from tool.project.workspace import Home
from tool.series import lockfile as locks
from tool.series.lockfile import Lock, LockedRelease
from tool.series.model import Series
from tool.upstream import resolve as upstream
from tool.upstream import target


def relock(series: Series, home: Home, release: Version, *, offline: bool, quiet: bool) -> bool:
    """Apply, prove and record; True when series.lock changed.

    A release the lock knows keeps its wheels and base, so only a new release trusts the index.

    Raises:
        ToolError: whatever applying or proving raises; the lock is then as before.
    """
    patches = patches_for(series, release)
    lock = locks.load(series.lock_path)
    with home.exclusive():
        git = home.open_repository()
        landing.recover(git, home)
        request = upstream.Request(f"v{release}", offline=offline, quiet=quiet)
        found = target.resolve(git, home, series, lock, request, whole=True)
        base, wheels = found.base, found.wheels
        preimages.ensure(git, home, series, lock, patches, request, release=release)
        applied = engine.apply_series(git, base, patches)
        proofs.check(git, applied)
        entry = LockedRelease(release, wheels, base.commit, base.tree, locked_patches(applied))
        pruned = Lock({v: r for v, r in lock.releases.items() if series.for_release(v)})
        return locks.save(series.lock_path, pruned.with_release(entry))
