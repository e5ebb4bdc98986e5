"""``tool drift``: what carrying the series to another release would meet. Changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from packaging.version import InvalidVersion, Version

from tool.apply import (
    check_patch_files,
    compose_release,
    find_missing_preimages,
    prepare_base,
    select_patches,
)
from tool.classify import OutcomeKind, ReplayStep, replay_series
from tool.errors import ToolError
from tool.git import Git
from tool.project import Session
from tool.rebase.rerere import recall_resolution
from tool.series import patchfile
from tool.upstream import (
    PYPI,
    Base,
    Request,
    carried_release,
    find_release,
    names_release,
    previous_release,
    release_ref,
    resolve_release,
)


@dataclass(frozen=True)
class Preview:
    """``broken_since``: per patch that does not carry over, the first release known here that breaks
    it. ``same_as_lock``: does the resulting tree equal the locked one (None: not locked)?
    ``remembered``: per patch that does not carry over, the remembered resolution that holds there."""

    source: Version
    base: Base
    steps: tuple[ReplayStep, ...]
    broken_since: dict[str, Version]
    same_as_lock: bool | None
    remembered: dict[str, str]

    @property
    def failing(self) -> tuple[ReplayStep, ...]:
        return tuple(s for s in self.steps if s.stops)

    @property
    def tree(self) -> str:
        trees = [s.applied.tree for s in self.steps if s.applied is not None]
        return trees[-1] if trees else self.base.tree


def preview_rebase(session: Session, request: Request, *, source: Version | None = None) -> Preview:
    """Classify every patch of release ``source`` (default: the newest one below) on ``request``.

    Raises:
        ToolError: a base cannot be had, or a patch file is not the locked one.
    """
    with session.exclusive():
        git, series, lock = session.git, session.series, session.lock
        if names_release(request.ref):
            release = find_release(series, request)
            start = previous_release(lock, release, source)
            base = resolve_release(session, request, whole=False).base
        else:
            base = resolve_release(session, request, whole=False).base
            release = base.release
            start = carried_release(lock, release, source)
        patches = select_patches(series, start)
        warn_of_lost_changes(session, start, release)
        old = prepare_source(session, start)

        def classify(on: Base) -> tuple[ReplayStep, ...]:
            return tuple(replay_series(git, series, on, patches, old_tree=old))

        steps = classify(base)
        failing = {s.patch.name for s in steps if s.stops}
        # Of a git ref it is not a release that breaks a patch, but a commit: tool bisect finds it.
        broken = {} if base.basis else dict.fromkeys(failing, release)
        if broken:
            broken |= _first_breaks(_between(git, start, release), classify, failing)
        entry = lock.releases.get(release)
        known = {s.patch.name: recall_resolution(session, base, s) for s in steps if s.stops}
        remembered = {name: str(found[1]) for name, found in known.items() if found}
        done = Preview(start, base, steps, broken, None, remembered)
        if entry is None or not entry.patches or base.source != PYPI or failing:
            return done
        return replace(done, same_as_lock=entry.final_tree == done.tree)


def warn_of_lost_changes(session: Session, source: Version, onto: Version) -> None:
    """Warn of each change that ``onto`` needs and another release has, but not ``source``: it would not
    reach ``onto``. A change that a person left out, or that upstream has, is not meant."""
    series = session.series
    there = {patch.change for patch in series.for_release(source)}
    for change in series.changes:
        files = [p for p in series.patches if p.change == change.name]
        if change.name in there or not change.needed.contains(onto, prereleases=True):
            continue
        if any(patch.applies_to(onto) for patch in files):
            continue  # it begins there
        proven = {p.name: session.lock.checked_on(p.name) for p in files}
        known = {p.name: max(proven[p.name]) for p in files if proven[p.name]}
        if not known:
            continue
        name = max(known, key=lambda n: known[n])
        newest = next(p for p in files if p.name == name)
        header = patchfile.parse(name, newest.content).header
        if header.get("Skipped") or header.get("Applied-Upstream"):
            continue
        session.warn(
            f"the change {change.name} is needed on v{onto}, and v{source} has no patch of it, so it will "
            f"not get there; bring it to v{source} first: tool rebase --patch {name} --onto v{source}"
        )


def prepare_source(session: Session, release: Version) -> str:
    """Bring in the release carried from, and its patches' pre-images; returns its base tree.

    Raises:
        IntegrityError: a patch file is not the locked one.
    """
    patches = select_patches(session.series, release)
    check_patch_files(patches, session.lock.get(release))
    # The base is needed even where no blob is missing: its tree tells what upstream renamed.
    base = prepare_base(session, Request(f"v{release}"))
    if find_missing_preimages(session.git, patches):
        compose_release(session, release)
    return base.tree


def _first_breaks(
    bases: Iterator[Base], classify: Callable[[Base], tuple[ReplayStep, ...]], failing: set[str]
) -> dict[str, Version]:
    """The first of ``bases`` that breaks each patch of ``failing``, for those that one breaks."""
    found: dict[str, Version] = {}
    for base in bases:
        if failing == set(found):
            break
        try:
            steps = classify(base)
        except ToolError:
            continue  # a pre-image that is not here: this release can say nothing
        for step in steps:
            if step.patch.name in failing and step.stops:
                found.setdefault(step.patch.name, base.release)
    return found


def _between(git: Git, start: Version, end: Version) -> Iterator[Base]:
    """The releases in between that the repository holds, oldest first."""
    prefix = release_ref(Version("0"))[: -len("0")]
    known: list[Version] = []
    for ref in git.out("for-each-ref", "--format=%(refname)", "refs/ada/base").split():
        try:
            known.append(Version(ref.removeprefix(prefix)))
        except InvalidVersion:
            continue
    for version in sorted(known):
        if start < version < end:
            commit = git.resolve(release_ref(version))
            assert commit is not None
            yield Base(version, commit, git.tree_of(commit), PYPI, f"v{version}")


def count_outcomes(steps: Sequence[ReplayStep]) -> dict[str, int]:
    """How many patches had each outcome; outcomes that no patch had are left out."""
    counts = {kind.value: sum(s.outcome.kind is kind for s in steps) for kind in OutcomeKind}
    return {kind: count for kind, count in counts.items() if count}
