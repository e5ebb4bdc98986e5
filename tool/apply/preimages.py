"""The blobs a three-way merge starts from, for patches that were written for another release.

A patch keeps its file as long as it reads the same, so on a later release its pre-image may be a
file of an earlier one. Such a blob is a release's file with the patches before it applied: importing
that release and applying the series to it brings the blob into the repository. series.lock says
which release that is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from packaging.version import Version

from tool.apply.engine import apply_series
from tool.git import NULL_OID, Git
from tool.project import Session
from tool.series import Lock, Patch, patchfile
from tool.upstream import Request, release_ref, resolve_base


def ensure_preimages(session: Session, patches: Sequence[Patch], release: Version) -> None:
    """Bring in what ``patches`` need on ``release``, which the lock may or may not hold.

    What no locked release can give is left to the engine, which refuses to go on without it.

    Raises:
        ToolError: a release that holds a pre-image cannot be had (offline, no network).
    """
    _ensure(session, patches, release, frozenset())


def _ensure(
    session: Session, patches: Sequence[Patch], release: Version, visited: frozenset[Version]
) -> None:
    releases = session.lock.releases
    # What applying the series to ``release`` makes or finds by itself.
    own = releases[release].pre_images if release in releases else frozenset[str]()
    needed = find_missing_preimages(session.git, patches, own)
    for version, entry in sorted(releases.items()):
        if not needed or version == release or version in visited:
            continue
        if needed.isdisjoint(entry.pre_images):
            continue
        if session.git.resolve(release_ref(version)) is None:
            count = len(needed & entry.pre_images)
            session.progress.note(
                f"sglang {version} is needed: {count} file(s) that patches for v{release} start from are "
                "those of that release"
            )
        base = resolve_base(session, Request(f"v{version}"))
        theirs = session.series.for_release(version)
        _ensure(session, theirs, version, visited | {version, release})
        apply_series(session.git, base, theirs)
        needed = find_missing_preimages(session.git, patches, own)


def find_missing_preimages(
    git: Git, patches: Sequence[Patch], own: Collection[str] = ()
) -> frozenset[str]:
    """Pre-images of ``patches`` that the repository has not, but for those of ``own``."""
    wanted = {oid for _, oid in find_orphans(patches, own)}
    if not wanted:
        return frozenset()
    return frozenset(oid for oid, there in git.has_objects(sorted(wanted)).items() if not there)


def list_known_preimages(lock: Lock) -> frozenset[str]:
    """Every blob that some locked release holds where a patch begins."""
    return frozenset[str]().union(*(entry.pre_images for entry in lock.releases.values()))


def find_orphans(patches: Sequence[Patch], known: Collection[str]) -> Iterator[tuple[Patch, str]]:
    """Pre-images of ``patches`` that are not ``known``: if those are all that the locked releases give,
    nothing gives them back, however much is fetched."""
    for patch in patches:
        for file in patchfile.parse(patch.name, patch.content).files:
            if file.before != NULL_OID and file.before not in known:
                yield patch, file.before
