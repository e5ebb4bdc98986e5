"""``tool drift``: what carrying the series to another release would meet. Changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from packaging.version import InvalidVersion, Version

from tool.apply import compose, engine, preimages
from tool.classify import replay
from tool.classify.outcome import OutcomeKind
from tool.classify.replay import Step
from tool.errors import ToolError
from tool.git.repository import Git
from tool.project import checkout as landing
from tool.project.workspace import Workspace
from tool.series import lockfile as locks
from tool.series.lockfile import Lock
from tool.series.model import Patch, Series
from tool.upstream import download as fetch
from tool.upstream import resolve as upstream
from tool.upstream import wheel_import as wheelimport
from tool.upstream.resolve import Base, Request, previous_release, resolve_release


@dataclass(frozen=True)
class Preview:
    """``broken_since``: per patch that does not carry over, the first release known here that breaks
    it. ``same_as_lock``: does the resulting tree equal the locked one (None: not locked)?"""

    source: Version
    base: Base
    steps: tuple[Step, ...]
    broken_since: dict[str, Version]
    same_as_lock: bool | None

    @property
    def failing(self) -> tuple[Step, ...]:
        return tuple(s for s in self.steps if s.stops)

    @property
    def tree(self) -> str:
        trees = [s.applied.tree for s in self.steps if s.applied is not None]
        return trees[-1] if trees else self.base.tree


def preview(
    series: Series, home: Workspace, request: Request, *, source: Version | None
) -> Preview:
    """Judge every patch of release ``source`` (default: the newest one below) on ``request``.

    Raises:
        ToolError: a base cannot be had, or a patch file is not the proven one.
    """
    with home.exclusive():
        git = home.open_repository()
        landing.recover_checkout(git, home)
        return _preview(git, home, series, request, source)


def _preview(
    git: Git, home: Workspace, series: Series, request: Request, source: Version | None
) -> Preview:
    lock = locks.load(series.lock_path)
    release = upstream.find_release(series, request)
    start = previous_release(lock, release, source)
    patches = compose.select_patches(series, start)
    compose.check_patch_files(patches, lock.get(start))
    base = resolve_release(git, home, series, lock, request, whole=False).base
    old = prepare_source(git, home, series, lock, start, patches, request)

    def judged(on: Base) -> tuple[Step, ...]:
        return tuple(replay.replay(git, series, on, patches, old_tree=old))

    steps = judged(base)
    failing = {s.patch.name for s in steps if s.stops}
    broken = dict.fromkeys(failing, release)
    if failing:
        broken |= _first_breaks(_between(git, start, release), judged, failing)
    entry = lock.releases.get(release)
    done = Preview(start, base, steps, broken, None)
    if entry is None or not entry.patches or base.source != upstream.PYPI or failing:
        return done
    return Preview(start, base, steps, broken, entry.final_tree == done.tree)


def find_newer(series: Series) -> Version | None:
    """The newest release on the index, if it is newer than every carried one.

    Raises:
        EnvironmentFault: the index cannot be asked.
    """
    lock = locks.load(series.lock_path)
    carried = [v for v, entry in lock.releases.items() if entry.patches]
    offered = fetch.list_available()
    return offered[-1] if offered and (not carried or offered[-1] > max(carried)) else None


def prepare_source(
    git: Git,
    home: Workspace,
    series: Series,
    lock: Lock,
    start: Version,
    patches: Sequence[Patch],
    request: Request,
) -> str:
    """Bring in the release carried from, and its patches' pre-images; returns its base tree."""
    # A release's base is looked up even where no blob is missing: its tree tells what upstream renamed.
    source = Request(f"v{start}", offline=request.offline, quiet=request.quiet)
    preimages.ensure_preimages(git, home, series, lock, patches, source, release=start)
    base = upstream.resolve_base(git, home, series, lock, source)
    if preimages.find_missing_preimages(git, patches):
        applied = engine.apply_series(git, base, patches)
        compose.check_results(applied, lock.get(start), base)
    return base.tree


def _first_breaks(
    bases: Iterator[Base], judged: Callable[[Base], tuple[Step, ...]], failing: set[str]
) -> dict[str, Version]:
    """The first of ``bases`` that breaks each patch of ``failing``, for those that one breaks."""
    found: dict[str, Version] = {}
    for base in bases:
        if failing == set(found):
            break
        try:
            steps = judged(base)
        except ToolError:
            continue  # a pre-image that is not here: this release can say nothing
        for step in steps:
            if step.patch.name in failing and step.stops:
                found.setdefault(step.patch.name, base.release)
    return found


def _between(git: Git, start: Version, end: Version) -> Iterator[Base]:
    """The releases in between that the repository holds, oldest first."""
    prefix = wheelimport.release_ref(Version("0"))[: -len("0")]
    known: list[Version] = []
    for ref in git.out("for-each-ref", "--format=%(refname)", "refs/ada/base").split():
        try:
            known.append(Version(ref.removeprefix(prefix)))
        except InvalidVersion:
            continue
    for version in sorted(known):
        if start < version < end:
            commit = git.resolve(wheelimport.release_ref(version))
            assert commit is not None
            yield Base(version, commit, git.tree_of(commit), upstream.PYPI, f"v{version}")


def count_outcomes(steps: Sequence[Step]) -> dict[str, int]:
    """How many patches met each verdict; verdicts nobody met are left out."""
    counts = {kind.value: sum(s.verdict.kind is kind for s in steps) for kind in OutcomeKind}
    return {kind: count for kind, count in counts.items() if count}
