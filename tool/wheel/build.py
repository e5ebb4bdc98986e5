"""Build the fork wheel of a release: fetch it, apply the series, check the result, overlay it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.version import Version

from tool.apply import check_applied, compose_ref, compose_series
from tool.git import EXECUTABLE, NULL_OID, Git
from tool.project import Session
from tool.series import LockedRelease, Series, patchfile, read_kernels, read_requirements
from tool.upstream import PREFIX, Base, Request, choose_wheel, fetch_wheel, names_release
from tool.wheel.overlay import BuiltWheel, build_fork_wheel
from tool.wheel.sbom import PatchProvenance


@dataclass(frozen=True)
class ForkParts:
    """What every wheel of one release's fork is made of, whichever Python and machine it is for.

    The fields are those of :func:`tool.wheel.overlay.build_fork_wheel`.
    """

    locked: LockedRelease
    revision: int
    patched: Mapping[str, bytes | None]
    kernels: Mapping[str, bytes]
    requires: Sequence[str]
    patches: Sequence[PatchProvenance]
    executables: Collection[str]
    base: Base

    def build(self, source: Path, out: Path) -> BuiltWheel:
        """Build the wheel of the released ``source`` into ``out``. Raises as ``build_fork_wheel``."""
        return build_fork_wheel(
            source,
            out,
            locked=self.locked,
            revision=self.revision,
            patched=self.patched,
            kernels=self.kernels,
            requires=self.requires,
            patches=self.patches,
            executables=self.executables,
        )


def build_wheel(
    session: Session, request: Request, *, out: Path, python: str | None, machine: str | None
) -> tuple[Base, BuiltWheel]:
    """Build the wheel of one Python and machine into ``out``; also what it is built on.

    Raises:
        UsageError: the release has no wheel for that Python and machine.
        ToolError: whatever composing, checking or building raises; nothing is left in ``out`` then.
    """
    with session.exclusive():
        parts = prepare_parts(session, request)
        wanted = choose_wheel(parts.locked, python, machine)
        return parts.base, parts.build(fetch_wheel(session, parts.locked, wanted), out)


def prepare_parts(session: Session, request: Request) -> ForkParts:
    """Apply the series to ``request``'s release and check the result; the data folder must be held.

    Raises:
        ToolError: whatever composing or checking raises.
    """
    series, git = session.series, session.git
    if names_release(request.ref):
        composed = compose_series(session, request)
        check_applied(git, composed.applied)
        locked = session.lock.get(composed.base.release)
    else:
        found = compose_ref(session, request)
        composed, locked = found.composed, found.entry
        if found.left_out:
            session.warn(
                f"{len(found.left_out)} changed file(s) of {composed.base.label} are in no wheel of "
                f"sglang and not in this one, first {found.left_out[0]}"
            )
    return ForkParts(
        locked=locked,
        revision=series.revision,
        patched=_patched(git, locked),
        kernels=read_kernels(series.kernel_dir),
        requires=read_requirements(series.kernel_dir),
        patches=describe_patches(series, locked.version),
        executables=_list_executables(git, composed.base.tree),
        base=composed.base,
    )


def _list_executables(git: Git, tree: str) -> frozenset[str]:
    """The executable files of a base, as names of a wheel's members."""
    rows = git.out("ls-tree", "-r", "-z", tree).split("\0")
    return frozenset(
        row.partition("\t")[2].removeprefix(PREFIX)
        for row in rows
        if row.startswith(f"{EXECUTABLE} ")
    )


def _patched(git: Git, locked: LockedRelease) -> dict[str, bytes | None]:
    """Path → content after the whole series, None for a file the series deletes."""
    after = {path: change.after for path, change in locked.net_files().items()}
    contents = git.blobs([oid for oid in after.values() if oid != NULL_OID])
    return {path: contents.get(oid) for path, oid in after.items()}


def describe_patches(series: Series, release: Version) -> list[PatchProvenance]:
    """What the headers of the patches for ``release`` say, in order.

    Raises:
        UsageError: a patch file is missing or has no header.
    """
    return [
        PatchProvenance.from_header(
            patch.name,
            patch.sha256,
            patch.change,
            dict(patchfile.parse(patch.name, patch.content).header.fields),
        )
        for patch in series.for_release(release)
    ]
