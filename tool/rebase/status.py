"""``tool status``: what the series is, and what each patch does on a given release."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from packaging.version import Version

from tool.errors import IntegrityError
from tool.git import Git, list_worktrees
from tool.project import Session, carries_token
from tool.rebase.state import load_state
from tool.series import Patch, Series
from tool.upstream import release_ref


@dataclass(frozen=True)
class PatchStatus:
    """``state``: ``applies``, ``other release``, ``retired`` or ``upstream``; ``detail`` says why."""

    change: str
    patch: str
    releases: str
    state: str
    detail: str


@dataclass(frozen=True)
class RebaseStatus:
    """A rebase under way in the project ``root``; onto the git ref ``ref`` if that is not None, and of the
    patch ``alone`` if that is not None.

    ``patch`` is where it stopped and ``outcome`` why; both are None when a kill left it between two stops.
    ``next_step`` is what to type."""

    root: str
    source: Version
    onto: Version
    patch: str | None
    outcome: str | None
    worktree: str | None
    next_step: str
    ref: str | None = None
    alone: str | None = None


@dataclass(frozen=True)
class Status:
    release: Version
    pin: Version
    revision: int
    supported: tuple[Version, ...]
    base: str | None
    imported: bool
    cached_wheels: tuple[str, ...]
    worktrees: dict[str, str]
    patches: tuple[PatchStatus, ...]
    rebase: RebaseStatus | None


def read_status(session: Session, release: Version) -> Status:
    """Read-only: looks at the series, the lock, the cache and the repository."""
    series, lock, workspace = session.series, session.lock, session.workspace
    entry = lock.releases.get(release)
    git = workspace.find_repository()
    imported = git is not None and git.resolve(release_ref(release)) is not None
    wheels = entry.wheels if entry else ()
    return Status(
        release=release,
        pin=series.pin,
        revision=series.revision,
        supported=tuple(sorted(lock.releases)),
        base=entry.base_commit if entry else None,
        imported=imported,
        cached_wheels=tuple(
            w.filename for w in wheels if (workspace.wheels / w.filename).is_file()
        ),
        worktrees={b: str(p) for b, p in list_worktrees(git).items()} if git else {},
        patches=tuple(_patches(series, release)),
        rebase=_rebase(session, git),
    )


def _rebase(session: Session, git: Git | None) -> RebaseStatus | None:
    try:
        state = load_state(session.folder)
    except IntegrityError as error:
        session.warn(f"{error.where}: {error.message}; {error.next_step}")
        return None
    if state is None:
        return None
    stop, token = state.stop, state.token
    ref = state.ref.label if state.ref else None
    if not (stop and git and token and carries_token(git, Path(state.folder), token)):
        resume = "tool rebase --continue"
        return RebaseStatus(
            state.root, state.source, state.onto, None, None, None, resume, ref, state.patch
        )
    return RebaseStatus(
        state.root,
        state.source,
        state.onto,
        stop.patch,
        stop.kind.value,
        state.folder,
        "tool rebase, which says what is to be decided and how",
        ref,
        state.patch,
    )


def _patches(series: Series, release: Version) -> Iterator[PatchStatus]:
    for patch in series.patches:
        state, detail = _state(series, patch, release)
        yield PatchStatus(patch.change, patch.name, str(patch.releases), state, detail)


def _state(series: Series, patch: Patch, release: Version) -> tuple[str, str]:
    change = series.change_of(patch)
    if patch.applies_to(release):
        return "applies", ""
    if not change.needed.contains(release, prereleases=True):
        if change.upstream:
            return "upstream", f"since {change.upstream}"
        return "retired", f"needed on {change.needed}"
    heirs = [p.name for p in series.for_release(release) if p.change == patch.change]
    if heirs:
        return "other release", f"({', '.join(heirs)} here)"
    return "other release", f"sglang {release} is not carried"
