"""``tool bisect``: the first upstream commit that breaks each patch, by halving the commits in between.

A commit is judged as ``tool drift`` judges it. Only the first parents are walked, so a pull request that was
merged is one commit. A patch that broke, was mended and broke again gives one of the commits that break it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from packaging.version import Version

from tool.apply import select_patches
from tool.classify import ReplayStep, replay_series
from tool.errors import UsageError
from tool.git import Git
from tool.project import Session
from tool.rebase.preview import prepare_source
from tool.upstream import (
    Base,
    Request,
    carried_release,
    names_release,
    previous_release,
    resolve_beside,
    resolve_ref,
)


@dataclass(frozen=True)
class Break:
    """The commit that breaks a patch: it carries over to the commit before it. ``step`` is how it breaks.

    ``commit`` is None where the patch carries over to the last commit, or is broken on the first already.
    """

    patch: str
    step: ReplayStep
    commit: str | None
    title: str
    date: str


@dataclass(frozen=True)
class Bisection:
    """``good`` is the commit begun with; ``commits`` counts those after it, ``tried`` those looked at."""

    source: Version
    base: Base
    good: str
    commits: int
    tried: int
    breaks: tuple[Break, ...]


def bisect_breaks(
    session: Session,
    request: Request,
    *,
    good: str | None = None,
    source: Version | None = None,
    names: Sequence[str] = (),
) -> Bisection:
    """Find what breaks the patches ``names`` (default: all that break) between ``good`` and ``request``.

    ``good`` is a ref of the same git source. Without it, the history is walked from where it left the tag
    of the release ``source`` (default: the newest carried one).

    Raises:
        UsageError: ``good`` is not before the ref, or a name is no patch of that release.
        ToolError: a commit cannot be had, or the series is not the locked one.
    """
    with session.exclusive():
        git, series = session.git, session.series
        base = resolve_ref(session, request)
        choose = previous_release if names_release(request.ref) else carried_release
        start = choose(session.lock, base.release, source)
        patches = select_patches(series, start)
        wanted = {series.find_patch(name, start).name for name in names}
        if missing := wanted - {patch.name for patch in patches}:
            raise UsageError(f"{min(missing)} is not a patch on sglang {start}", where="series.txt")
        old = prepare_source(session, start)
        first = _find_good(session, request, base, start, good)
        commits = _list_commits(git, first, base)
        known: dict[str, dict[str, ReplayStep]] = {}

        def judge(commit: str) -> dict[str, ReplayStep]:
            if commit not in known:
                resolve_beside(session, request, commit)
                session.progress.note(f"trying {commit[:12]} {_read(git, commit)[1]}")
                on = replace(base, commit=commit, tree=git.tree_of(commit))
                steps = replay_series(git, series, on, patches, old_tree=old)
                known[commit] = {step.patch.name: step for step in steps}
            return known[commit]

        last = judge(base.commit)
        looked_at = wanted or {name for name, step in last.items() if step.stops}
        breaks = []
        for name in (patch.name for patch in patches if patch.name in looked_at):
            if not last[name].stops:
                breaks.append(Break(name, last[name], None, "", ""))
                continue
            if judge(first)[name].stops:
                breaks.append(Break(name, judge(first)[name], None, "", ""))
                continue
            lines = [first, *commits]
            low, high = 0, len(lines) - 1
            while high - low > 1:
                middle = (low + high) // 2
                if judge(lines[middle])[name].stops:
                    high = middle
                else:
                    low = middle
            date, title = _read(git, lines[high])
            breaks.append(Break(name, judge(lines[high])[name], lines[high], title, date))
    return Bisection(start, base, first, len(commits), len(known), tuple(breaks))


def _find_good(
    session: Session, request: Request, base: Base, start: Version, good: str | None
) -> str:
    if good is not None:
        return resolve_beside(session, request, good)
    try:
        tag = resolve_beside(session, request, f"v{start}")
    except UsageError as error:
        raise UsageError(
            f"{error.message}, so nothing tells where to begin",
            next_step="name a commit that is good: tool bisect GOOD..BAD",
        ) from error
    found = session.git.run("merge-base", tag, base.commit, check=False)
    if found.returncode != 0:
        raise UsageError(
            f"{base.label} has no commit in common with the tag v{start}",
            next_step="name a commit that is good: tool bisect GOOD..BAD",
        )
    return found.stdout.decode().strip()


def _list_commits(git: Git, first: str, base: Base) -> list[str]:
    """The commits after ``first`` up to ``base``, oldest first, along the first parents."""
    done = git.run("merge-base", "--is-ancestor", first, base.commit, check=False)
    commits = git.out("rev-list", "--first-parent", "--reverse", f"{first}..{base.commit}").split()
    if done.returncode != 0 or not commits:
        raise UsageError(
            f"{first[:12]} is not before {base.label}",
            next_step="name a commit of its history that is good: tool bisect GOOD..BAD",
        )
    return commits


def _read(git: Git, commit: str) -> tuple[str, str]:
    """Date and title."""
    date, _, title = git.out("log", "-1", "--format=%cs%n%s", commit).partition("\n")
    return date, title
