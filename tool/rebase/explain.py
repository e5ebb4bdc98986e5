"""``tool explain`` and ``tool diff``: what a patch is for, and what the series does differently where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from packaging.version import Version

from tool.analysis import Outlines, changed_blocks
from tool.apply import Applied, Composition, compose_release, compose_series
from tool.classify import replay_series
from tool.errors import UsageError
from tool.git import Git
from tool.project import Session
from tool.series import Patch, Series, patchfile
from tool.upstream import Base, Request


@dataclass(frozen=True)
class Dependent:
    """A later patch that stops applying without the explained one, and how."""

    patch: str
    outcome: str
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Explanation:
    """``symbols`` by file, as they are on ``base``: the newest release the patch is proven on, or what was
    asked for."""

    patch: str
    subject: str
    body: str
    change: str
    needed: str
    upstream: str | None
    releases: str
    checked_on: tuple[Version, ...]
    fields: tuple[tuple[str, str], ...]
    relatives: tuple[tuple[str, str], ...]
    base: Base
    symbols: dict[str, tuple[str, ...]]
    dependents: tuple[Dependent, ...]


def explain_patch(session: Session, name: str, request: Request | None = None) -> Explanation:
    """Everything known about the patch ``name``; what it changes and what needs it, on ``request``.

    Raises:
        UsageError: the series has no such patch, it was checked on no release, or it is not one of
            ``request``.
        ConflictError, UpstreamedError: the series does not apply to ``request``.
    """
    with session.exclusive():
        series = session.series
        composed = compose_series(session, request) if request else None
        patch = series.find_patch(name, composed.base.release if composed else series.pin)
        proven = tuple(sorted(session.lock.checked_on(patch.name)))
        if not proven:
            raise UsageError(
                f"{patch.name} was not proven on any release",
                where="series.lock",
                next_step="prove it: tool lock --sglang-ref RELEASE",
            )
        composed = composed or compose_release(session, proven[-1])
        if patch.name not in [applied.name for applied in composed.applied]:
            raise UsageError(
                f"{patch.name} is not a patch on {composed.base.label}",
                where="series.txt",
                next_step=f"leave --sglang-ref out: it was proven on {', '.join(f'v{v}' for v in proven)}",
            )
        symbols = _symbols(session.git, composed.applied, patch.name)
        dependents = _dependents(session.git, series, composed, patch)
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
        checked_on=proven,
        fields=header.fields,
        relatives=tuple(
            (p.name, str(p.releases))
            for p in series.patches
            if p.change == patch.change and p.name != patch.name
        ),
        base=composed.base,
        symbols=symbols,
        dependents=dependents,
    )


def diff_bases(session: Session, one: Request, other: Request) -> tuple[Base, Base, str]:
    """``git range-diff`` of the series on two releases or git refs, and these; the kernels are the same and
    left out.

    Raises:
        UsageError: a release is not carried.
        ConflictError, UpstreamedError: the series does not apply to a git ref.
    """
    with session.exclusive():
        found = [compose_series(session, request) for request in (one, other)]
        spans = [f"{composed.base.commit}..{composed.tip}" for composed in found]
        # The creation factor says how alike two commits must be to be seen as versions of one patch.
        text = session.git.out("range-diff", "--no-color", "--creation-factor=80", *spans)
        return found[0].base, found[1].base, text


def _symbols(git: Git, applied: Sequence[Applied], name: str) -> dict[str, tuple[str, ...]]:
    outlines = Outlines(git)
    found: dict[str, tuple[str, ...]] = {}
    for change in next(a for a in applied if a.name == name).files:
        runs = changed_blocks(git, change.path, change.before, change.after, outlines)
        found[change.path] = tuple(dict.fromkeys(run.symbol for run in runs))
    return found


def _dependents(
    git: Git, series: Series, composed: Composition, patch: Patch
) -> tuple[Dependent, ...]:
    """Replay what comes after the patch on the tree before it."""
    base, applied = composed.base, composed.applied
    names = [a.name for a in applied]
    at = names.index(patch.name)
    before = applied[at - 1] if at else None
    start = replace(base, commit=before.commit, tree=before.tree) if before else base
    later = [p for p in series.for_release(base.release) if p.name in names[at + 1 :]]
    steps = replay_series(git, series, start, later, old_tree=None)
    return tuple(
        Dependent(s.patch.name, s.outcome.kind.value, s.outcome.reasons) for s in steps if s.stops
    )
