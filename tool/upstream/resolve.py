"""From what the user typed to a base commit: a release from the package index, or a git ref.

The package index is the default because it is what everyone can reach. With a git source the base
is sglang's own commit. Its id differs from that of the imported wheel, but the files that the series
touches are the same: series.lock holds the blob id of each.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final

from packaging.version import Version

from tool.errors import EnvironmentFault, IntegrityError, UsageError
from tool.git import Git, is_oid
from tool.project import Session
from tool.series import Lock, LockedRelease, LockedWheel, Series, parse_release
from tool.upstream.basis import Basis, find_basis
from tool.upstream.download import (
    discover_wheels,
    fetch_wheel,
    list_cached,
    order_wheels,
)
from tool.upstream.git_source import GitSource, find_commit, make_source
from tool.upstream.sources import list_sources
from tool.upstream.wheel_import import import_wheel, release_ref

PYPI: Final = "pypi"
GIT: Final = "git"
DEFAULT_URL: Final = "https://github.com/sgl-project/sglang.git"
PIN: Final = "pin"

_RELEASE = re.compile(r"v?\d+\.\d+[A-Za-z0-9.+!-]*")


@dataclass(frozen=True)
class Request:
    """What to apply to.

    ``source`` is ``pypi``, ``git``, the name of a source, or a git URL or path; None lets the ref decide.
    ``release`` is what a git ref is based on, None to find it.
    """

    ref: str
    source: str | None = None
    release: Version | None = None


@dataclass(frozen=True)
class Base:
    """A commit to apply to. ``source`` is ``pypi`` (the released wheel) or ``git``.

    ``basis`` tells a git ref that is no release from a release. ``release`` is then the one whose patches
    apply, or what the ref is based on, as the function that made it says. ``typed`` is what to type to
    name it again.
    """

    release: Version
    commit: str
    tree: str
    source: str
    label: str
    basis: Basis | None = None
    typed: str = ""

    @property
    def slug(self) -> str:
        """A name for folders and branches: ``v0.5.23``, ``upstream-main``."""
        if self.basis is None:
            return f"v{self.release}"
        name = self.typed.split()[0]
        return self.commit[:12] if is_oid(name) else re.sub(r"[^A-Za-z0-9_]+", "-", name).strip("-")

    @property
    def based_on(self) -> str | None:
        """A sentence about ``basis``."""
        if self.basis is None:
            return None
        return f"{self.label} is based on v{self.basis.release}: {self.basis.how}"


@dataclass(frozen=True)
class ResolvedRelease:
    """``wheels`` go into series.lock; empty for a git source, or where nobody asked for them."""

    base: Base
    wheels: tuple[LockedWheel, ...]


def find_release(series: Series, request: Request) -> Version:
    """The release that ``request`` names: by itself, or as the pin.

    Raises:
        UsageError: it names no release.
    """
    if request.ref == PIN:
        return series.pin
    if names_release(request.ref):
        return parse_release(request.ref)
    raise UsageError(
        f"{request.ref!r:.200} is not a release",
        why="series.lock, and what rests on it, knows releases only",
        next_step="name a release (v0.5.23); git refs are for tool apply, build, diff, drift, explain, "
        "rebase and bisect",
    )


def names_release(ref: str) -> bool:
    """Does ``ref`` name a release, or the pin, rather than a git ref?"""
    return ref == PIN or _RELEASE.fullmatch(ref) is not None


def resolve_base(session: Session, request: Request) -> Base:
    """Find or fetch the base commit. A git ref gets the patches of the newest carried release up to the one
    that it is based on; ``Base.release`` is that carried release.

    Raises:
        UsageError: unknown release, or not a ref.
        EnvironmentFault: nothing cached and offline, or the transfer failed.
        IntegrityError: what came is not what series.lock holds.
    """
    if not names_release(request.ref):
        base = resolve_ref(session, request)
        return replace(base, release=carried_release(session.lock, base.release))
    release = find_release(session.series, request)
    if request.source in (None, PYPI):
        return _from_index(session, session.lock.get(release))
    source = _find_source(session, str(request.source))
    commit = find_commit(session, source, f"v{release}", refresh=source.name is None)
    tree = session.git.tree_of(commit)
    return Base(release, commit, tree, GIT, f"v{release} of {source}")


def resolve_ref(session: Session, request: Request) -> Base:
    """The commit of a git ref, which may be a release's tag; ``Base.release`` is what it is based on.

    Raises:
        UsageError: not a ref, or nothing tells what it is based on.
        EnvironmentFault: never fetched and offline, or the transfer failed.
    """
    if request.source == PYPI:
        raise UsageError(
            f"{request.ref!r} is not a release, and the package index knows only releases",
            next_step="name a release (v0.5.23), or take the ref from git: --source git",
        )
    source, ref = _split_ref(session, request)
    commit = find_commit(session, source, ref, refresh=source.name is None)
    git = session.git
    basis = find_basis(git, session.lock, source, commit, request.release)
    name = f"{source.name}/{ref}" if source.name else f"{ref} of {source.url}"
    typed = f"{source.name}/{ref}" if source.name else ref
    if source.name is None and request.source is not None:
        typed += f" --source {GIT if request.source == GIT else source.url}"
    if request.release is not None:
        typed += f" --release v{request.release}"
    # Not git show: it compares the commit with its parent, and fetches what it needs for that.
    made = git.out("log", "-1", "--format=%cs", commit)
    label = f"{name} ({made})" if is_oid(ref) else f"{name} ({commit[:12]}, {made})"
    return Base(basis.release, commit, git.tree_of(commit), GIT, label, basis, typed)


def resolve_beside(session: Session, request: Request, ref: str) -> str:
    """The commit that ``ref`` is in the git source of ``request``. Raises as ``resolve_ref``."""
    source, _ = _split_ref(session, request)
    if source.name:
        ref = ref.removeprefix(f"{source.name}/")
    return find_commit(session, source, ref, refresh=source.name is None)


def _split_ref(session: Session, request: Request) -> tuple[GitSource, str]:
    """The source that a git ref is of, and its name there: ``NAME/REF``, or one of the only source."""
    if request.source is not None:
        return _find_source(session, request.source), request.ref
    known = list_sources(session)
    name, slash, rest = request.ref.partition("/")
    if slash and name in known:
        return known[name], rest
    if len(known) > 1:
        raise UsageError(
            f"the project has {len(known)} git sources, and {request.ref!r:.200} does not say which",
            next_step=" or ".join(f"{name}/{request.ref}" for name in sorted(known)),
        )
    return next(iter(known.values()), None) or make_source(DEFAULT_URL), request.ref


def _find_source(session: Session, text: str) -> GitSource:
    if text in (GIT, PYPI):
        return make_source(DEFAULT_URL)
    return list_sources(session).get(text) or make_source(text)


def find_imported(git: Git, locked: LockedRelease) -> str | None:
    """The base commit if the repository has it already. Raises IntegrityError when it is another one."""
    commit = git.resolve(release_ref(locked.version))
    if commit is not None and commit != locked.base_commit:
        raise IntegrityError(
            f"the base of sglang {locked.version} is not the locked one",
            where=str(git.git_dir),
            why=f"{release_ref(locked.version)} is {commit}, locked {locked.base_commit}",
            next_step=f"restore series.lock, or drop the ref: git -C {git.git_dir} update-ref -d "
            f"{release_ref(locked.version)}",
        )
    return commit


def _from_index(session: Session, locked: LockedRelease) -> Base:
    git = session.git
    if find_imported(git, locked) is None:
        for wanted in order_wheels(session, locked):
            path = fetch_wheel(session, locked, wanted)
            commit = import_wheel(git, path, locked.version, progress=session.progress)
            if commit == locked.base_commit:
                break
            git.run("update-ref", "-d", release_ref(locked.version))
        else:
            raise IntegrityError(
                f"importing {path.name} gave commit {commit}, and no other wheel gave the locked one",
                where="series.lock",
                why=f"the lock holds {locked.base_commit}",
                next_step="report it: the wheels' hashes are right, so the import is not reproducible here",
            )
    return Base(locked.version, locked.base_commit, locked.base_tree, PYPI, f"v{locked.version}")


def carried_release(lock: Lock, release: Version, named: Version | None = None) -> Version:
    """The release whose patches serve what is based on ``release``: ``named``, or the newest carried one
    that is not newer.

    Raises:
        UsageError: there is none.
    """
    usable = [v for v in lock.carried if v <= release]
    if named is None and not usable:
        raise UsageError(
            f"the series supports no release up to sglang {release}",
            where="series.lock",
            why=_describe_carried(lock),
            next_step="name the supported release that it is nearest to: --release RELEASE",
        )
    return usable[-1] if named is None else _get_carried(lock, named)


def previous_release(lock: Lock, release: Version, named: Version | None) -> Version:
    """The release to start from: ``named``, or the newest one below ``release`` that has patches.

    Raises:
        UsageError: there is none.
    """
    if named is not None:
        return _get_carried(lock, named)
    below = [v for v in lock.carried if v < release]
    if below:
        return below[-1]
    raise UsageError(
        f"the series supports nothing older than sglang {release}",
        where="series.lock",
        why=_describe_carried(lock),
        next_step="to go to an older release, name the one to start from with --from",
    )


def _get_carried(lock: Lock, named: Version) -> Version:
    if named not in lock.carried:
        lock.get(named)  # the usual refusal, when the lock lacks it
        raise UsageError(f"the series has no patch on sglang {named}", where="series.lock")
    return named


def _describe_carried(lock: Lock) -> str:
    return f"supported releases: {', '.join(f'v{v}' for v in lock.carried) or 'none'}"


def _find_wheels(session: Session, release: Version, *, whole: bool) -> tuple[LockedWheel, ...]:
    cached = list_cached(session.workspace, release)
    if not session.offline and (whole or not cached):
        return discover_wheels(session, release, whole=whole)
    if not cached:
        raise EnvironmentFault(
            f"no wheel of sglang {release} is in the cache",
            where=str(session.workspace.wheels),
            why="--offline uses nothing but the cache",
            next_step="run once without --offline",
        )
    if whole:
        session.progress.note(
            f"--offline: the lock of sglang {release} gets the {len(cached)} cached wheel(s); add those of "
            f"the index later with: tool lock --wheels v{release}"
        )
    return cached


def resolve_release(session: Session, request: Request, *, whole: bool) -> ResolvedRelease:
    """Find or fetch ``request``'s base. ``whole``: with every wheel of the release, as a lock needs.

    A release that is not locked is whatever the index serves; its hashes are recorded, not checked. Of a git
    ref, ``Base.release`` is the release that it is based on.

    Raises:
        UsageError: no such release or ref, or it is yanked.
        EnvironmentFault: offline and not in the cache, or the transfer failed.
        IntegrityError: a wheel cannot be read.
    """
    if not names_release(request.ref):
        return ResolvedRelease(resolve_ref(session, request), ())
    git, releases = session.git, session.lock.releases
    release = find_release(session.series, request)
    if request.source not in (None, PYPI) or release in releases:
        base = resolve_base(session, request)
        wheels = releases[release].wheels if base.source == PYPI else ()
        return ResolvedRelease(base, wheels)
    known = None if whole else git.resolve(release_ref(release))
    if known is not None:  # imported by an earlier look at it
        return ResolvedRelease(Base(release, known, git.tree_of(known), PYPI, f"v{release}"), ())
    wheels = _find_wheels(session, release, whole=whole)
    path = session.workspace.wheels / wheels[0].filename
    commit = import_wheel(git, path, release, progress=session.progress)
    base = Base(release, commit, git.tree_of(commit), PYPI, f"v{release}")
    return ResolvedRelease(base, wheels)
