"""The release that the series is to be carried to: its base, whether series.lock knows it or not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from packaging.utils import InvalidWheelFilename, parse_wheel_filename
from packaging.version import Version

from tool.apply.engine import Base
from tool.errors import EnvironmentFault, UsageError
from tool.git.repository import Git
from tool.project.workspace import Home
from tool.series.lockfile import Lock, LockedWheel
from tool.series.model import Series
from tool.upstream import download as fetch
from tool.upstream import resolve as upstream
from tool.upstream import wheel_import as wheelimport
from tool.upstream.resolve import Request


@dataclass(frozen=True)
class Target:
    """``wheels`` go into series.lock; empty for a git source, or where nobody asked for them."""

    base: Base
    wheels: tuple[LockedWheel, ...]


def resolve(
    git: Git, home: Home, series: Series, lock: Lock, request: Request, *, whole: bool
) -> Target:
    """Find or fetch ``request``'s base. ``whole``: with every wheel of the release, as a lock needs.

    A release that is not locked is whatever the index serves; its hashes are recorded, not checked.

    Raises:
        UsageError: no such release, or it is yanked.
        EnvironmentFault: offline and not in the cache, or the transfer failed.
        IntegrityError: a wheel cannot be read.
    """
    release = upstream.release_of(series, request)
    from_git = request.source not in (None, upstream.PYPI) or not upstream.is_release(request.ref)
    if from_git or release in lock.releases:
        base = upstream.resolve(git, home, series, lock, request)
        wheels = lock.releases[release].wheels if base.source == upstream.PYPI else ()
        return Target(base, wheels)
    known = None if whole else git.resolve(wheelimport.ref_of(release))
    if known is not None:  # imported by an earlier look at it
        return Target(Base(release, known, git.tree_of(known), upstream.PYPI, f"v{release}"), ())
    wheels = _wheels(home, release, request, whole=whole)
    commit = wheelimport.import_wheel(
        git, home.wheels / wheels[0].filename, release, quiet=request.quiet
    )
    base = Base(release, commit, git.tree_of(commit), upstream.PYPI, f"v{release}")
    return Target(base, wheels)


def older(lock: Lock, release: Version, named: Version | None) -> Version:
    """The release to carry from: ``named``, or the newest carried one below ``release``.

    Raises:
        UsageError: there is none.
    """
    carried = sorted(v for v, entry in lock.releases.items() if entry.patches)
    if named is not None:
        if named not in carried:
            lock.get(named)  # the usual refusal, when the lock lacks it
            raise UsageError(f"the series has no patch on sglang {named}", where="series.lock")
        return named
    below = [v for v in carried if v < release]
    if below:
        return below[-1]
    raise UsageError(
        f"the series carries nothing older than sglang {release}",
        where="series.lock",
        why=f"supported releases: {', '.join(f'v{v}' for v in carried) or 'none'}",
        next_step="to carry it backwards, name the release to start from with --from",
    )


def _wheels(
    home: Home, release: Version, request: Request, *, whole: bool
) -> tuple[LockedWheel, ...]:
    cached = tuple(_cached(home, release))
    if request.offline or (cached and not whole):
        if not cached:
            raise EnvironmentFault(
                f"no wheel of sglang {release} is in the cache",
                where=str(home.wheels),
                why="--offline uses nothing but the cache",
                next_step="run once without --offline",
            )
        return cached
    return fetch.discover(home, release, quiet=request.quiet)


def _cached(home: Home, release: Version) -> list[LockedWheel]:
    found: list[LockedWheel] = []
    for path in sorted(home.wheels.glob(f"{fetch.PROJECT}-*.whl")):
        if _version_of(path) == release:
            found.append(LockedWheel(path.name, fetch.sha256(path), path.stat().st_size))
    return found


def _version_of(path: Path) -> Version | None:
    try:
        return parse_wheel_filename(path.name)[1]
    except InvalidWheelFilename:
        return None
