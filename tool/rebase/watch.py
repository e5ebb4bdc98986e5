"""``tool watch``: which releases are new, what each would meet, and what became of upstream threads."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from packaging.version import Version

from tool.errors import EnvironmentFault
from tool.git import Git
from tool.project import Session
from tool.rebase.preview import Preview, preview_rebase
from tool.series import Lock, Thread, find_threads
from tool.upstream import (
    Request,
    Yanked,
    discover_wheels,
    list_cached,
    list_wheels,
    release_ref,
    resolve_base,
)

_TITLE: Final = re.compile(r"\(#(\d+)\)$|^Merge pull request #(\d+) ")
_REVERT: Final = re.compile(r'^Revert "')
_REVERTED: Final = re.compile(r'\(#(\d+)\)"')


@dataclass(frozen=True)
class ThreadState:
    """``state``: ``merged``, ``reverted`` or ``not merged`` as the history of ``release`` tells; None where
    no history was looked at. ``title`` is the commit's."""

    thread: Thread
    state: str | None
    release: Version | None
    title: str


@dataclass(frozen=True)
class Watched:
    """``previews`` are of the new releases, oldest first; ``unusable`` those of which the index has no
    wheel to look at, each with the reason."""

    newest_carried: Version | None
    previews: tuple[Preview, ...]
    unusable: dict[Version, str]
    threads: tuple[ThreadState, ...]


def watch_releases(
    session: Session, *, prereleases: bool = False, source: str | None = None
) -> Watched:
    """Ask the index once, and look at one wheel of each release that is newer than every carried one.

    Args:
        prereleases: look at pre-releases and dev versions too.
        source: a git repository of sglang (``git``, a URL or a path). Titles of its commits tell which
            threads were merged; a wheel does not.

    Raises:
        EnvironmentFault: the index cannot be asked, or has no release.
        ToolError: as ``preview_rebase``.
    """
    lock, offered = session.lock, list_wheels()
    if not offered:
        raise EnvironmentFault(
            "the package index offers no release of sglang",
            next_step="check pip's index settings: pip config list",
        )
    new = find_new(lock, offered.values(), prereleases=prereleases)
    unusable: dict[Version, str] = {}
    with session.exclusive():
        for release in new:
            imported = session.git.resolve(release_ref(release))
            if imported is None and not list_cached(session.workspace, release):
                try:
                    discover_wheels(session, release, whole=False, offered=offered)
                except Yanked as error:
                    unusable[release] = f"yanked{f': {error.why}' if error.why else ''}"
    previews = [preview_rebase(session, Request(f"v{v}")) for v in new if v not in unusable]
    newest = max(lock.carried, default=None)
    states: tuple[ThreadState, ...] = ()
    if newest is not None:
        known = find_threads(session.series.for_release(newest))
        looked_at = max((p.base.release for p in previews), default=newest)
        open_ones = [thread for thread in known if thread.open]
        states = tuple(_look_up(session, open_ones, looked_at, source))
    return Watched(newest, tuple(previews), unusable, states)


def find_new(lock: Lock, offered: Iterable[Version], *, prereleases: bool) -> list[Version]:
    """Those of ``offered`` that are newer than every release that the series carries, oldest first."""
    newest = max(lock.carried, default=None)
    usable = {v for v in offered if prereleases or not v.is_prerelease}
    return sorted(v for v in usable if newest is None or v > newest)


def _look_up(
    session: Session, threads: Sequence[Thread], release: Version, source: str | None
) -> Iterator[ThreadState]:
    if source is None or not threads:
        yield from (ThreadState(thread, None, None, "") for thread in threads)
        return
    with session.exclusive():
        base = resolve_base(session, Request(f"v{release}", source))
        titles = _read_titles(session.git, base.commit)
    for thread in threads:
        state, title = titles.get(thread.number, ("not merged", ""))
        yield ThreadState(thread, state, release, title)


def _read_titles(git: Git, commit: str) -> dict[int, tuple[str, str]]:
    """By pull request: ``merged`` or ``reverted``, whichever is later, and the title of that commit."""
    found: dict[int, tuple[str, str]] = {}
    for title in git.out("log", "--format=%s", commit).split("\n"):
        if _REVERT.match(title):
            for number in _REVERTED.findall(title):
                found.setdefault(int(number), ("reverted", title))
        elif match := _TITLE.search(title):
            found.setdefault(int(match[1] or match[2]), ("merged", title))
    return found
