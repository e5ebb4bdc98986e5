"""``tool build``: from a release to its fork wheel — fetch, apply, prove, overlay."""

from __future__ import annotations

from pathlib import Path

from tool.apply import checks as proofs
from tool.apply.compose import Composition, compose
from tool.git.objects import NULL_OID
from tool.git.repository import Git
from tool.project import checkout as landing
from tool.project.workspace import Workspace
from tool.series import lockfile as locks
from tool.series.kernels import find_kernels, read_requirements
from tool.series.model import Series
from tool.upstream import download as fetch
from tool.upstream.resolve import Request
from tool.wheel.overlay import BuiltWheel, build_fork_wheel
from tool.wheel.sbom import PatchProvenance


def build_wheel(
    series: Series,
    home: Workspace,
    request: Request,
    *,
    out: Path,
    python: str | None,
    machine: str | None,
) -> BuiltWheel:
    """Build the wheel of one Python and machine into ``out``.

    Raises:
        UsageError: the release has no wheel for that Python and machine.
        ToolError: whatever composing, proving or building raises; nothing is left in ``out`` then.
    """
    lock = locks.load(series.lock_path)
    with home.exclusive():
        git = home.open_repository()
        landing.recover_checkout(git, home)
        composed = compose(git, home, series, lock, request)
        proofs.check_applied(git, composed.applied)
        locked = lock.get(composed.base.release)
        wanted = fetch.choose_wheel(locked, python, machine)
        source = fetch.fetch_wheel(
            home, locked, wanted, offline=request.offline, quiet=request.quiet
        )
        kernels = {n: p.read_bytes() for n, p in find_kernels(series.kernel_dir).items()}
        return build_fork_wheel(
            source,
            out,
            locked=locked,
            revision=series.revision,
            patched=_patched(git, composed),
            kernels=kernels,
            requires=read_requirements(series.kernel_dir),
            patches=_provenance(series, composed),
        )


def _patched(git: Git, composed: Composition) -> dict[str, bytes | None]:
    """Path → content after the whole series, None for a file the series deletes."""
    after = {change.path: change.after for patch in composed.applied for change in patch.files}
    contents = git.blobs([oid for oid in after.values() if oid != NULL_OID])
    return {path: contents.get(oid) for path, oid in after.items()}


def _provenance(series: Series, composed: Composition) -> list[PatchProvenance]:
    changes = {p.name: p.change for p in series.patches}
    return [
        PatchProvenance.from_header(a.name, a.sha256, changes[a.name], dict(a.patch.header.fields))
        for a in composed.applied
    ]
