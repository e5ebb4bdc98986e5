"""``tool check``: the whole series against every supported release, in private indexes.

Per release: every patch applies and its proofs hold (replay); files, trees and commits are those of
series.lock; a commit exported again is the patch file (round trip); and a patch applied to its own
result is refused as already there (no double apply). A release whose check fails is a finding, the
others go on.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import monotonic

from packaging.version import Version

from tool.analysis import Outlines
from tool.apply.checks import check_applied
from tool.apply.compose import check_patch_files, check_results, prepare_base
from tool.apply.engine import Applied, apply_patch
from tool.apply.preimages import find_orphans, list_known_preimages
from tool.errors import ConflictError, EnvironmentFault, ToolError, UpstreamedError
from tool.git import Git, canonical_diff, private_index
from tool.project import Session
from tool.series import LockedRelease, Patch, Series, patchfile
from tool.upstream import Base, Request, find_release

REPLAY, LOCK, ROUND_TRIP, TWICE = "replay", "lock", "round trip", "double apply"
CHECK_RULES = (REPLAY, LOCK, ROUND_TRIP, TWICE)


@dataclass(frozen=True)
class Finding:
    """``where`` is the patch, or the file of the project, that does not hold."""

    rule: str
    where: str
    message: str


@dataclass(frozen=True)
class Checked:
    """One release. ``seconds`` is wall time; ``exact`` and ``merged`` count patches."""

    release: Version
    patches: int
    exact: int
    merged: int
    files: int
    tree: str
    seconds: float
    findings: tuple[Finding, ...]


def select_releases(session: Session, text: str) -> tuple[Version, ...]:
    """``all``, or a comma-separated list of releases that the lock holds.

    Raises:
        UsageError: a release the series does not carry.
    """
    lock = session.lock
    if text == "all":
        return tuple(lock.carried)
    wanted = [find_release(session.series, Request(part.strip())) for part in text.split(",")]
    return tuple(lock.get(version).version for version in dict.fromkeys(wanted))


def check_releases(
    session: Session, releases: Sequence[Version], *, jobs: int
) -> tuple[Checked, ...]:
    """Check every release of ``releases``, ``jobs`` at a time.

    Raises:
        EnvironmentFault: a base cannot be had. Everything about the series itself is a finding.
    """
    with session.exclusive():
        # One after the other: imports write refs, and two releases may need the same pre-image.
        bases = {release: _prepare(session, release) for release in releases}
        git, series, lock = session.git, session.series, session.lock
        known = list_known_preimages(lock)
        outlines = Outlines(git)
        with ThreadPoolExecutor(max_workers=max(1, jobs)) as pool:
            return tuple(
                pool.map(
                    lambda r: _check(git, series, lock.get(r), bases[r], known, outlines), releases
                )
            )


def _prepare(session: Session, release: Version) -> Base | ToolError:
    try:
        return prepare_base(session, Request(f"v{release}"))
    except EnvironmentFault:
        raise
    except ToolError as error:
        return error


def _check(
    git: Git,
    series: Series,
    locked: LockedRelease,
    base: Base | ToolError,
    known: Collection[str],
    outlines: Outlines,
) -> Checked:
    start = monotonic()
    if isinstance(base, ToolError):
        return Checked(locked.version, 0, 0, 0, 0, "", 0.0, (_finding(LOCK, base),))
    patches = series.for_release(locked.version)
    findings: list[Finding] = []
    applied: list[Applied] = []
    files = 0
    try:
        check_patch_files(patches, locked)
    except ToolError as error:
        findings.append(_finding(LOCK, error))
    findings += [
        Finding(
            LOCK,
            f"patches/{patch.name}",
            f"was written on {oid[:12]}, which no release of series.lock gives: only a repository that "
            "happens to have it can apply the patch; write it anew: tool refresh",
        )
        for patch, oid in find_orphans(patches, known)
    ]
    try:
        for patch, result, twice in _replay(git, base, patches):
            applied.append(result)
            findings += twice
            findings += _round_trip(git, patch, result)
        files = check_applied(git, applied, outlines)
    except ToolError as error:
        findings.append(_finding(REPLAY, error))
    if len(applied) == len(locked.patches):
        try:
            check_results(applied, locked, base)
        except ToolError as error:
            findings.append(_finding(LOCK, error))
    exact = sum(a.exact for a in applied)
    tree = applied[-1].tree if applied else base.tree
    return Checked(
        locked.version,
        len(applied),
        exact,
        len(applied) - exact,
        files,
        tree,
        monotonic() - start,
        tuple(findings),
    )


def _replay(
    git: Git, base: Base, patches: Sequence[Patch]
) -> Iterator[tuple[Patch, Applied, list[Finding]]]:
    """Each patch applied once, and then once more, which must be refused."""
    with private_index(git, base.tree) as index:
        commit, tree = base.commit, base.tree
        for patch in patches:
            result = apply_patch(index, patch, commit, tree)
            commit, tree = result.commit, result.tree
            yield patch, result, list(_twice(index, patch, result))


def _twice(index: Git, patch: Patch, result: Applied) -> Iterator[Finding]:
    try:
        again = apply_patch(index, patch, result.commit, result.tree)
    except UpstreamedError:
        return
    except ConflictError as error:
        message = f"on its own result it conflicts instead of being seen as there: {error.why}"
    else:
        index.run("read-tree", result.tree)
        message = f"applies to its own result a second time, changing {again.files[0].path}"
    yield Finding(TWICE, f"patches/{patch.name}", message)


def _round_trip(git: Git, patch: Patch, result: Applied) -> Iterator[Finding]:
    """The commit, exported, is the patch file; where it was merged, but for line numbers and blobs."""
    message = git.out("log", "-1", "--format=%B", result.commit)
    header, name = patchfile.from_message(message)
    diff = canonical_diff(git, result.parent_tree, result.tree)
    exported = patchfile.render(header, diff)
    same = exported == patch.content if result.exact else _same_text(result, exported)
    if not same or name != patch.name:
        yield Finding(
            ROUND_TRIP,
            f"patches/{patch.name}",
            "its commit, exported again, is another file; write it anew: tool apply, tool export, tool lock",
        )


def _same_text(result: Applied, exported: bytes) -> bool:
    """The same header and, file by file, the same hunks; positions and blobs may differ."""
    again = patchfile.parse(result.name, exported)
    return again.header == result.patch.header and patchfile.same_hunks(again, result.patch)


def _finding(rule: str, error: ToolError) -> Finding:
    message = f"{error.message} ({error.why})" if error.why else error.message
    return Finding(rule, error.where or "series.lock", message)
