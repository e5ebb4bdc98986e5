"""``tool rebase --patch``: bring one patch to other releases that the series carries.

On each release the patch is replayed as it is on the nearest release that has it, which may be the result
of the step before: so it moves away from the release it was made for, forwards and backwards. All
releases are written together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from tool.apply import apply_series, check_applied, find_missing_preimages
from tool.authoring import Author
from tool.classify import Decision, ReplayStep, replay_series
from tool.errors import ConflictError, UpstreamedError, UsageError
from tool.git import canonical_diff
from tool.project import Session
from tool.rebase.history import HistoryRow
from tool.rebase.write import SeriesUpdate, is_unchanged
from tool.series import (
    PATCH_DIR,
    SERIES_FILE,
    Lock,
    Patch,
    Series,
    find_stem,
    make_specifier,
    name_next_file,
    parse_release,
    patchfile,
    widen_needed,
    widen_specifier,
)
from tool.upstream import Base

ALL: Final = "all"


@dataclass(frozen=True)
class CarryStep:
    """The patch on ``release``. ``original`` is what was replayed, from the release ``source``."""

    release: Version
    source: Version
    original: Patch
    step: ReplayStep


def select_targets(session: Session, name: str, onto: str) -> tuple[Patch, tuple[Version, ...]]:
    """The patch ``name``, and the releases of ``onto``, in the order in which the patch reaches them.

    Args:
        onto: releases with commas between them, or ``all``: those that need the patch and lack it.

    Raises:
        UsageError: the series has no such patch; or a release is not carried, has the patch, or does not
            need it.
    """
    series, lock = session.series, session.lock
    patch = series.find_patch(name, series.pin)
    known = list(_find_versions(series, lock, patch))
    if not known:
        raise UsageError(
            f"{patch.name} is on no release of series.lock",
            where=SERIES_FILE,
            next_step="check and record it first: tool lock --sglang-ref RELEASE",
        )
    carried = lock.carried
    if onto == ALL:
        targets = {v for v in carried if _find_obstacle(series, lock, patch, v) is None}
        if not targets:
            raise UsageError(
                f"every release that needs {patch.change} has a patch of it",
                where=SERIES_FILE,
                next_step=f"see which: tool explain {patch.name}",
            )
    else:
        targets = {parse_release(text.strip()) for text in onto.split(",")}
        for target in sorted(targets):
            if problem := _find_obstacle(series, lock, patch, target):
                raise problem
    order: list[Version] = []
    while targets:
        order.append(min(targets, key=lambda v: (_distance(carried, known, v), v)))
        known.append(order[-1])
        targets.remove(order[-1])
    return patch, tuple(order)


def _distance(carried: Sequence[Version], known: Sequence[Version], target: Version) -> int:
    """How many releases lie between ``target`` and the nearest of ``known``."""
    at = carried.index(target)
    return min(abs(carried.index(v) - at) for v in known)


def _find_versions(series: Series, lock: Lock, patch: Patch) -> dict[Version, Patch]:
    """The files of ``patch`` for its several releases, by the releases they were checked on."""
    stem = find_stem(patch.name)
    own = [p for p in series.patches if find_stem(p.name) == stem]
    return {v: p for p in own for v in lock.checked_on(p.name)}


def _find_obstacle(series: Series, lock: Lock, patch: Patch, target: Version) -> UsageError | None:
    """Why ``patch`` cannot be brought to ``target``."""
    if target not in lock.carried:
        return UsageError(
            f"the series does not carry sglang {target} yet",
            where="series.lock",
            next_step=f"carry the whole series there, with this patch: tool rebase --onto v{target}",
        )
    for there in series.for_release(target):
        if find_stem(there.name) == find_stem(patch.name):
            return UsageError(
                f"v{target} has {there.name} already",
                where=SERIES_FILE,
                next_step=f"change it there: tool refresh {there.name} WORKTREE",
            )
    change = series.change_of(patch)
    if (
        change.needed.contains(target, prereleases=True)
        or widen_needed(change.needed, target) is not None
    ):
        return None
    return UsageError(
        f"the change {change.name} is needed on {change.needed}, not on v{target}",
        where=f"{SERIES_FILE}:{change.line}",
        why=f"upstream has it since {change.upstream}" if change.upstream else None,
        next_step="widen that line if it is needed there after all, then run the same command again",
    )


def replay_carry(
    session: Session, name: str, targets: Sequence[Version], decisions: Mapping[str, Decision]
) -> Iterator[CarryStep]:
    """Classify the patch ``name`` on each of ``targets``; the caller may stop at any step.

    A step's patch has the name that a new file for its release would have, and decisions are found by it.
    As for ``replay_series``, a decision that comes while the caller holds a step gives that step again.

    Raises:
        ConflictError, UpstreamedError: a patch after it does not apply any more on that release.
        ToolError: a base or a pre-image cannot be had.
    """
    author = Author(session)
    git, lock = session.git, session.lock
    patch = session.series.find_patch(name)
    series, _ = _widen(session.series, patch, min(targets))
    carried = lock.carried
    versions = _find_versions(series, lock, patch)
    taken = {p.name for p in series.patches}
    for target in targets:
        source = min(versions, key=lambda v: (_distance(carried, [v], target), v))
        listed = versions[source]
        wanted = name_next_file(patch.name, target, taken)
        taken.add(wanted)
        author.base(source)
        if find_missing_preimages(git, [listed]):
            author.applied(source)  # makes the blobs that it was written on
        base = author.base(target)
        at = next(i for i, p in enumerate(series.patches) if p.name == listed.name)
        here = [(i, p) for i, p in enumerate(series.patches) if p.applies_to(target)]
        before = apply_series(git, base, [p for i, p in here if i < at])
        start = replace(base, commit=before[-1].commit, tree=before[-1].tree) if before else base
        candidate = replace(
            listed,
            name=wanted,
            releases=SpecifierSet(f"=={target}"),
            content_override=listed.content,
        )
        for step in replay_series(
            git,
            series,
            start,
            [candidate],
            old_tree=lock.get(source).base_tree,
            decisions=decisions,
        ):
            if step.applied is not None:
                after = replace(start, commit=step.applied.commit, tree=step.applied.tree)
                _check_later(session, target, after, wanted, [p for i, p in here if i > at])
            yield CarryStep(target, source, candidate, step)
        if step.applied is not None:
            made = replace(listed, content_override=_content(session, listed, step))
            versions[target] = made


def _check_later(
    session: Session, release: Version, start: Base, name: str, later: Sequence[Patch]
) -> None:
    """Raises ConflictError when a patch after the carried one does not apply any more."""
    for patch in later:
        try:
            applied = apply_series(session.git, start, [patch])
            if not applied[0].exact:
                check_applied(session.git, applied)
        except (ConflictError, UpstreamedError) as error:
            raise ConflictError(
                f"does not apply on v{release} after {name}: {error.message}",
                where=f"{PATCH_DIR}/{patch.name}",
                why=error.why,
                next_step=f"leave v{release} out of --onto; or give the patch up: tool rebase --abort",
            ) from error
        start = replace(start, commit=applied[0].commit, tree=applied[0].tree)


def _content(session: Session, listed: Patch, step: ReplayStep) -> bytes:
    """The patch on the step's release: as it is in ``listed`` if it reads the same there."""
    if is_unchanged(listed, step) or step.applied is None:
        return listed.content
    header = patchfile.parse(step.patch.name, step.patch.content).header
    diff = canonical_diff(session.git, step.applied.parent_tree, step.applied.tree)
    return patchfile.render(header, diff)


def _widen(series: Series, patch: Patch, first: Version) -> tuple[Series, str | None]:
    """``series`` with the patch's change needed on ``first`` too, and what its line then says."""
    change = series.change_of(patch)
    text = widen_needed(change.needed, first)
    if change.needed.contains(first, prereleases=True) or text is None:
        return series, None
    wider = replace(change, needed=SpecifierSet(text))
    changes = tuple(wider if c.name == change.name else c for c in series.changes)
    return replace(series, changes=changes), text


def write_carry(session: Session, name: str, steps: Sequence[CarryStep]) -> SeriesUpdate:
    """The project's files with the patch on every release of ``steps`` that takes it.

    A file keeps standing for the release where the patch reads the same; else the release gets a new one.

    Raises:
        ConflictError: the edited series does not hold on one of the releases.
    """
    author = Author(session)
    series, lock, text = session.series, session.lock, author.text
    patch = series.find_patch(name)
    others = lock.carried
    files = _find_versions(series, lock, patch)
    ranges = {p.name: p for p in files.values()}
    proven = {n: lock.checked_on(n) for n in ranges}
    new: dict[str, bytes] = {}
    skipped: dict[str, list[str]] = {}
    rows: list[HistoryRow] = []
    wide: dict[str, str] = {}
    reached = [one.release for one in steps if one.step.applied is not None]
    for one in steps:
        step, kind = one.step, one.step.outcome.kind
        decided = step.decision.how if step.decision else ""
        near = files[one.source]
        if step.applied is None:
            reason = step.decision.skipped if step.decision else None
            skipped.setdefault(near.name, []).append(f"{one.release}, {reason}")
            became, file = f"left out: {reason}", None
        else:
            wider = None
            if is_unchanged(near, step):
                wider = widen_specifier(near, one.release, proven[near.name], others)
            if wider is not None:
                file, became = near.name, ""
                wide[file] = wider
                text.respecify(file, wider)
                ranges[file] = replace(near, releases=SpecifierSet(wider))
                proven[file] = proven[file] | {one.release}
            else:
                file = step.patch.name
                became, spec = f"new file {file}", f"=={one.release}"
                insert = text.insert_after if one.release > one.source else text.insert_before
                insert(near.name, file, spec)
                content = _content(session, near, step)
                ranges[file] = replace(
                    near,
                    name=file,
                    path=near.path.with_name(file.rpartition("/")[2]),
                    releases=SpecifierSet(spec),
                    content_override=content,
                )
                proven[file] = {one.release}
                new[file] = content
            for version in proven[file]:
                files[version] = ranges[file]
        rows.append(HistoryRow(step.patch.name, kind, step.outcome.reasons, decided, file, became))
    # A later step may widen a file further: what is said is where it ends.
    rows = [r if r.became else replace(r, became=f"kept, now {wide[str(r.file)]}") for r in rows]
    if reached:
        change = series.change_of(patch)
        if needed := _widen(series, patch, min(reached))[1]:
            text.require(change.name, needed)
    contents: dict[str, bytes] = {}
    headers: dict[str, bytes] = {}
    for file, after in ranges.items():
        parsed = patchfile.parse(file, after.content)
        fields = {"Releases": make_specifier(proven[file])}
        if file in skipped:
            fields["Skipped"] = "; ".join(
                filter(None, (parsed.header.get("Skipped"), *skipped[file]))
            )
        written = patchfile.render(patchfile.with_fields(parsed.header, **fields), parsed.diff)
        if file in new:
            contents[file] = written
        elif written != after.content and (
            file in skipped or proven[file] != lock.checked_on(file)
        ):
            headers[file] = written
    made, _ = author.prepare(patch.name, contents, sorted(reached), headers)
    final = {path: data for path, data in made.items() if data is not None}
    tree = author.tips[reached[-1]][1] if reached else ""
    return SeriesUpdate(final, tuple(rows), session.git.tree_of(tree) if tree else "", {})
