"""The whole series on one release, as commits, checked against the lock.

This is the one chain from a release to the fork: resolve it, bring in the pre-images its patches need,
apply them, and compare the results with series.lock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from packaging.version import Version

from tool.apply.engine import Applied, apply_series
from tool.apply.preimages import ensure_preimages
from tool.errors import ConflictError, IntegrityError, UpstreamedError, UsageError
from tool.project import Session
from tool.series import FileChange, LockedPatch, LockedRelease, Patch, Series
from tool.upstream import PYPI, Base, Request, find_release, names_release, resolve_base


@dataclass(frozen=True)
class Composition:
    """The patches of the series on ``base``, in order. ``locked``: every result is the one of the lock."""

    base: Base
    applied: tuple[Applied, ...]
    locked: bool = True

    @property
    def tip(self) -> str:
        """The commit of the last patch."""
        return self.applied[-1].commit if self.applied else self.base.commit

    @property
    def tree(self) -> str:
        """The tree of the last patch."""
        return self.applied[-1].tree if self.applied else self.base.tree


def compose_series(session: Session, request: Request) -> Composition:
    """Apply the series to ``request``'s release and compare the results with the lock.

    On a git ref that is no release the results may differ from the lock; ``Composition.locked`` tells.
    ``check_applied`` is left to the caller: it can run while a worktree is being written.

    Raises:
        UsageError: unknown release.
        IntegrityError: a patch file, the base or a result differs from series.lock.
        ConflictError, UpstreamedError: a patch does not apply.
    """
    if not names_release(request.ref):
        return _compose_ref(session, request)
    release = find_release(session.series, request)
    patches = select_patches(session.series, release)
    locked = session.lock.get(release)
    check_patch_files(patches, locked)
    base = prepare_base(session, request)
    composed = Composition(base, apply_series(session.git, base, patches))
    check_results(composed.applied, locked, base)
    return composed


def _compose_ref(session: Session, request: Request) -> Composition:
    """The series on a git ref that is no release: the lock says which patches, not what they give there."""
    base = prepare_base(session, request)
    patches = select_patches(session.series, base.release)
    locked = session.lock.get(base.release)
    check_patch_files(patches, locked)
    try:
        applied = apply_series(session.git, base, patches)
    except (ConflictError, UpstreamedError) as error:
        raise type(error)(
            error.message,
            where=error.where,
            why=f"{error.why}; {base.based_on}",
            next_step=f"see every patch: tool drift --onto {base.typed}; resolve them, or take what was "
            f"resolved before: tool rebase --onto {base.typed}; nothing was changed",
        ) from error
    same = all(
        _first_difference(patch.files, entry.files) is None
        for patch, entry in zip(applied, locked.patches, strict=True)
    )
    return Composition(base, applied, same)


def compose_release(session: Session, release: Version) -> Composition:
    """``compose_series`` on the released wheel of ``release``."""
    return compose_series(session, Request(f"v{release}"))


def prepare_base(session: Session, request: Request) -> Base:
    """Find or fetch ``request``'s base, and every pre-image that the series needs there.

    Raises:
        ToolError: as ``resolve_base`` and ``ensure_preimages``.
    """
    base = resolve_base(session, request)
    ensure_preimages(session, session.series.for_release(base.release), base.release)
    return base


def select_patches(series: Series, release: Version) -> tuple[Patch, ...]:
    patches = series.for_release(release)
    if not patches:
        raise UsageError(
            f"no patch of the series applies to sglang {release}",
            where="series.txt",
            next_step="name a supported release with --sglang-ref (see: tool status)",
        )
    return patches


def check_patch_files(patches: Sequence[Patch], locked: LockedRelease) -> None:
    """Every patch file is the one that was proven. Raises IntegrityError naming the first that is not."""
    names = [p.name for p in patches]
    wanted = [p.name for p in locked.patches]
    if names != wanted:
        raise IntegrityError(
            f"series.txt lists {', '.join(names)} for {locked.version}",
            where="series.lock",
            why=f"proven were {', '.join(wanted)}",
            next_step="restore series.txt, or prove the new series with tool lock "
            f"--sglang-ref v{locked.version}",
        )
    for patch, entry in zip(patches, locked.patches, strict=True):
        if patch.sha256 != entry.sha256:
            raise IntegrityError(
                "the patch file is not the one that was proven",
                where=f"patches/{patch.name}",
                why=f"sha256 {patch.sha256}, locked {entry.sha256}",
                next_step=f"restore it, or prove the new one: tool lock --sglang-ref v{locked.version}",
            )


def check_results(applied: Sequence[Applied], locked: LockedRelease, base: Base) -> None:
    """The results are those of the lock: per file for any source, trees and commits for the wheel.

    Raises:
        IntegrityError: naming the first patch and file that differ.
    """
    for patch, entry in zip(applied, locked.patches, strict=True):
        if differing := _first_difference(patch.files, entry.files):
            raise IntegrityError(
                f"{differing}: the result is not the proven one",
                where=f"patches/{patch.name}",
                why=f"{base.label} does not hold the files of sglang {locked.version} "
                "that the series was proven on (a moved tag, or another commit)",
                next_step=f"use the released wheel: tool apply --sglang-ref v{locked.version} --source pypi",
            )
        if base.source == PYPI and (patch.tree, patch.commit) != (
            entry.tree,
            entry.commit,
        ):
            raise IntegrityError(
                "the resulting commit is not the proven one",
                where=f"patches/{patch.name}",
                why=f"tree {patch.tree} commit {patch.commit}, locked {entry.tree} {entry.commit}",
                next_step="restore series.lock, or prove the series anew: tool lock",
            )


def _first_difference(found: Sequence[FileChange], wanted: Sequence[FileChange]) -> str | None:
    if list(found) == list(wanted):
        return None
    got = {f.path: f for f in found}
    want = {f.path: f for f in wanted}
    return min(path for path in got.keys() | want.keys() if got.get(path) != want.get(path))


def lock_patches(applied: Sequence[Applied]) -> tuple[LockedPatch, ...]:
    """What a lock entry records of ``applied``."""
    return tuple(LockedPatch(a.name, a.sha256, a.tree, a.commit, a.files) for a in applied)
