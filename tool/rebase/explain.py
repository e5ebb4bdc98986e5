"""``tool explain`` and ``tool diff``: what a patch is for, and what the series does differently where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from packaging.version import Version

from tool.analysis.changes import changed_blocks
from tool.analysis.outline import Outlines
from tool.apply import compose, engine, preimages
from tool.apply.engine import Applied
from tool.classify import replay
from tool.errors import UsageError
from tool.git.repository import Git
from tool.project import checkout as landing
from tool.project.workspace import Workspace
from tool.series import lockfile as locks
from tool.series import patchfile
from tool.series.lockfile import Lock
from tool.series.model import Patch, Series
from tool.upstream import resolve as upstream
from tool.upstream.resolve import Base, Request


@dataclass(frozen=True)
class Dependent:
    """A later patch that stops applying without the explained one, and how."""

    patch: str
    verdict: str
    evidence: tuple[str, ...]


@dataclass(frozen=True)
class Explanation:
    """``symbols`` by file, as they are on ``release``, the newest one the patch is proven on."""

    patch: str
    subject: str
    body: str
    change: str
    needed: str
    upstream: str | None
    releases: str
    proven: tuple[Version, ...]
    fields: tuple[tuple[str, str], ...]
    relatives: tuple[tuple[str, str], ...]
    release: Version
    symbols: dict[str, tuple[str, ...]]
    dependents: tuple[Dependent, ...]


def explain(
    series: Series, home: Workspace, name: str, *, offline: bool, quiet: bool
) -> Explanation:
    """Everything known about the patch ``name``.

    Raises:
        UsageError: the series has no such patch, or it was proven nowhere.
    """
    patch = series.listed(name)
    lock = locks.load(series.lock_path)
    proven = tuple(sorted(lock.proven(patch.name)))
    if not proven:
        raise UsageError(
            f"{patch.name} was not proven on any release",
            where="series.lock",
            next_step="prove it: tool lock --sglang-ref RELEASE",
        )
    release = proven[-1]
    with home.exclusive():
        git = home.open_repository()
        landing.recover_checkout(git, home)
        base, applied = _applied(git, home, series, lock, release, offline, quiet)
        symbols = _symbols(git, applied, patch.name)
        dependents = _dependents(git, series, base, applied, patch)
    change = series.change_of(patch)
    header = patchfile.parse(patch.name, patch.content).header
    return Explanation(
        patch=patch.name,
        subject=header.subject,
        body=header.body,
        change=change.name,
        needed=str(change.needed),
        upstream=change.upstream,
        releases=str(patch.releases),
        proven=proven,
        fields=header.fields,
        relatives=tuple(
            (p.name, str(p.releases))
            for p in series.patches
            if p.change == patch.change and p.name != patch.name
        ),
        release=release,
        symbols=symbols,
        dependents=dependents,
    )


def diff_releases(
    series: Series, home: Workspace, one: Version, other: Version, *, offline: bool, quiet: bool
) -> str:
    """``git range-diff`` of the series on two releases; the kernels are the same and left out.

    Raises:
        UsageError: a release is not carried.
    """
    lock = locks.load(series.lock_path)
    with home.exclusive():
        git = home.open_repository()
        landing.recover_checkout(git, home)
        spans = []
        for release in (one, other):
            base, applied = _applied(git, home, series, lock, release, offline, quiet)
            spans.append(f"{base.commit}..{applied[-1].commit}")
        # The creation factor says how alike two commits must be to be seen as versions of one patch.
        return git.out("range-diff", "--no-color", "--creation-factor=80", *spans)


def _applied(
    git: Git,
    home: Workspace,
    series: Series,
    lock: Lock,
    release: Version,
    offline: bool,
    quiet: bool,
) -> tuple[Base, Sequence[Applied]]:
    locked = lock.get(release)
    patches = compose.select_patches(series, release)
    compose.check_patch_files(patches, locked)
    request = Request(f"v{release}", offline=offline, quiet=quiet)
    base = upstream.resolve_base(git, home, series, lock, request)
    preimages.ensure_preimages(git, home, series, lock, patches, request, release=release)
    applied = engine.apply_series(git, base, patches)
    compose.check_results(applied, locked, base)
    return base, applied


def _symbols(git: Git, applied: Sequence[Applied], name: str) -> dict[str, tuple[str, ...]]:
    outlines = Outlines(git)
    found: dict[str, tuple[str, ...]] = {}
    for change in next(a for a in applied if a.name == name).files:
        runs = changed_blocks(git, change.path, change.before, change.after, outlines)
        found[change.path] = tuple(dict.fromkeys(run.symbol for run in runs))
    return found


def _dependents(
    git: Git, series: Series, base: Base, applied: Sequence[Applied], patch: Patch
) -> tuple[Dependent, ...]:
    """Replay what comes after the patch on the tree before it."""
    names = [a.name for a in applied]
    at = names.index(patch.name)
    before = applied[at - 1] if at else None
    start = replace(base, commit=before.commit, tree=before.tree) if before else base
    later = [p for p in series.for_release(base.release) if p.name in names[at + 1 :]]
    steps = replay.replay(git, series, start, later, old_tree=None)
    return tuple(
        Dependent(s.patch.name, s.verdict.kind.value, s.verdict.evidence) for s in steps if s.stops
    )
