"""``tool drop RELEASE``: take a release out of the series, series.lock and the history together."""

from __future__ import annotations

from dataclasses import dataclass

from packaging.version import Version

from tool.authoring import Author
from tool.errors import UsageError
from tool.project import Session
from tool.rebase.history import HISTORY_FILE, note_retired
from tool.rebase.state import load_state, refuse_while
from tool.series import Lock, Patch, exclude_release, patchfile


@dataclass(frozen=True)
class Retired:
    """``removed`` are patch files that stood for the release alone, ``written`` those that changed.

    ``releases`` are those that were checked anew, because a patch of theirs began with a file of the
    retired one.
    """

    release: Version
    removed: tuple[str, ...]
    written: tuple[str, ...]
    releases: tuple[Version, ...]


def retire_release(session: Session, release: Version, why: str) -> Retired:
    """End the support of ``release``. Its wheels, its base and its worktrees stay where they are.

    Raises:
        UsageError: it is not in series.lock, it is the pin, or a rebase is under way; or ``why`` is empty.
        ConflictError: a patch begins with a file that only this release gives, and cannot be written anew.
    """
    reason = " ".join(why.split())
    if not reason:
        raise UsageError("a release is not retired without a reason", next_step="--why TEXT")
    with session.exclusive():
        author = Author(session)
        series, lock = session.series, session.lock
        lock.get(release)
        if release == series.pin:
            raise UsageError(
                f"v{release} is the pin",
                where="series.txt",
                next_step="move the pin first: tool lock --pin RELEASE",
            )
        if running := load_state(session.folder):
            raise refuse_while(running)
        contents: dict[str, bytes | None] = {}
        headers: dict[str, bytes] = {}
        for patch in series.for_release(release):
            others = lock.checked_on(patch.name) - {release}
            if not others:
                author.text.drop(patch.name, f"{patch.name} went with v{release}: {reason}")
                contents[patch.name] = None
                continue
            spec = exclude_release(patch.releases, release, others)
            author.text.respecify(patch.name, spec)
            parsed = patchfile.parse(patch.name, patch.content)
            header = patchfile.with_fields(parsed.header, Releases=spec)
            headers[patch.name] = patchfile.render(header, parsed.diff)
        author.lock = Lock({v: entry for v, entry in lock.releases.items() if v != release})
        reached = _list_dependents(author, list(series.for_release(release)))
        files, done = author.prepare(str(release), contents, reached, headers)
        files[HISTORY_FILE] = note_retired(series, release, reason)
        session.write(files)
        return Retired(
            release, done.removed, tuple(sorted({*headers, *done.written})), tuple(reached)
        )


def _list_dependents(author: Author, patches: list[Patch]) -> list[Version]:
    """The releases of the patches that were written on a file which no other release gives."""
    known = frozenset[str]().union(*(e.pre_images for e in author.lock.releases.values()))
    found: set[Version] = set()
    for patch in patches:
        parsed = patchfile.parse(patch.name, patch.content)
        if any(file.before not in known for file in parsed.files if file.before.strip("0")):
            found |= author.lock.checked_on(patch.name)
    return sorted(found)
